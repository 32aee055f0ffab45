"""One rigid registration by a peer, in this process: writes the map from fixed to moving points.

Usage: python linear_peer.py PEER fixed.nii.gz moving.nii.gz OUTPUT.tfm
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path


def ants_rigid(fixed: str, moving: str, output: str) -> None:
    """Run ANTs with its Python package's settings for ``Rigid``: Mattes MI, from the centres."""
    import ants

    found = ants.registration(
        ants.image_read(fixed), ants.image_read(moving), type_of_transform="Rigid"
    )
    transform = ants.read_transform(found["fwdtransforms"][0])
    ants.write_transform(transform, output.replace(".tfm", ".mat"))


def elastix_rigid(fixed: str, moving: str, output: str) -> None:
    """Run elastix with its default parameter map for ``rigid``: Mattes MI, 4 levels."""
    import itk

    values = dict(itk.ParameterObject.GetDefaultParameterMap("rigid"))
    values |= {"ITKTransformOutputFileNameExtension": ["tfm"], "WriteResultImage": ["false"]}
    parameters = itk.ParameterObject.New()
    parameters.AddParameterMap(values)
    with tempfile.TemporaryDirectory() as folder:
        itk.elastix_registration_method(
            itk.imread(fixed, itk.F),
            itk.imread(moving, itk.F),
            parameter_object=parameters,
            output_directory=folder,
        )
        shutil.copy(str(Path(folder) / "TransformParameters.0.tfm"), output)


def greedy_rigid(fixed: str, moving: str, output: str) -> None:
    """Run greedy with normalised mutual information from the centres of mass of the images."""
    from picsl_greedy import Greedy3D

    with tempfile.TemporaryDirectory() as folder:
        matrix = str(Path(folder) / "rigid.mat")
        Greedy3D().execute(
            f"-threads 2 -a -dof 6 -i {fixed} {moving} -ia-image-centers "
            f"-m NMI -n 100x50x10 -o {matrix}"
        )
        shutil.copy(matrix, output.replace(".tfm", ".ras.txt"))


if __name__ == "__main__":
    peer, *files = sys.argv[1:]
    {"ants": ants_rigid, "elastix": elastix_rigid, "greedy": greedy_rigid}[peer](*files)

"""Register images that are already on a GPU, on the caller's stream, and keep the results there.

Needs a CUDA device, CuPy, and, for the second half, PyTorch.

python cuda_arrays.py FIXED MOVING
"""

import sys

import cupy
import numpy as np
import SimpleITK as sitk

import dinoreg_rt


def read(path: str) -> tuple[np.ndarray, dinoreg_rt.Geometry]:
    """Return voxels (z, y, x) float32 and their grid."""
    image = sitk.ReadImage(path, sitk.sitkFloat32)
    return sitk.GetArrayFromImage(image), dinoreg_rt.Geometry.from_sitk(image)


if len(sys.argv) != 3:
    sys.exit("usage: python cuda_arrays.py FIXED MOVING")
(fixed, fixed_grid), (moving, moving_grid) = map(read, sys.argv[1:])
config = dinoreg_rt.RegistrationConfig(device="cuda:0", initial="moments")
stay = dinoreg_rt.Placement(on_device=True)

with dinoreg_rt.Registrar(config) as registrar:
    registrar.warm_up(fixed_grid, moving_grid)

    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        pair = (cupy.asarray(fixed), fixed_grid), (cupy.asarray(moving), moving_grid)
    result = registrar.register(*pair, placement=stay, stream=stream)
    length_mm = cupy.linalg.norm(result.displacement.vectors_mm, axis=-1)  # no copy, no download
    print(f"CuPy: {float(length_mm.mean()):.2f} mm on average")

    try:
        import torch
    except ImportError:
        sys.exit(0)
    here = torch.cuda.Stream()
    with torch.cuda.stream(here):
        tensors = [torch.from_numpy(array).cuda() for array in (fixed, moving)]
    result = registrar.register(
        (tensors[0], fixed_grid), (tensors[1], moving_grid), placement=stay, stream=here
    )
    vectors_mm = torch.from_dlpack(result.displacement.vectors_mm)
    print(f"PyTorch: {vectors_mm.norm(dim=-1).mean().item():.2f} mm on average")

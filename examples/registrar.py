"""Register many pairs in one process that loads everything once, directly and in the background.

python registrar.py FIXED MOVING OUTPUT_FOLDER
"""

import sys
import time
from pathlib import Path

import SimpleITK as sitk

import dinoreg_rt

if len(sys.argv) != 4:
    sys.exit("usage: python registrar.py FIXED MOVING OUTPUT_FOLDER")
fixed_file, moving_file, output = map(Path, sys.argv[1:])
fixed = sitk.ReadImage(fixed_file, sitk.sitkFloat32)
moving = sitk.ReadImage(moving_file, sitk.sitkFloat32)

config = dinoreg_rt.RegistrationConfig(threads=2)
with dinoreg_rt.Registrar(config) as registrar:
    registrar.warm_up()  # opens the encoder, if the configuration names one

    began = time.perf_counter()
    result = registrar.register(fixed, moving)
    print(f"{time.perf_counter() - began:.2f} s on {registrar.device.name}")

    # `submit` returns at once; a thread of the registrar does the work.
    forth = registrar.submit(fixed, moving)
    back = registrar.submit(moving, fixed, progress=lambda stage, fraction: None)
    back.cancel()  # works whether it is waiting or running
    assert back.cancelled()
    same = forth.result()
    assert (same.displacement.vectors_mm == result.displacement.vectors_mm).all()

result.save(output)
print(f"{result.quality.folded_percent:.3f} % folded")
print(f"verdict: {result.trust.verdict}", *result.trust.reasons, *result.warnings, sep="\n- ")

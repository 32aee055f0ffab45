"""Register two files from Python and write the warped image, the transform and warped labels.

python register.py FIXED MOVING MOVING_LABELS OUTPUT_FOLDER
"""

import sys
from pathlib import Path

import SimpleITK as sitk

import dinoreg_rt

if len(sys.argv) != 5:
    sys.exit("usage: python register.py FIXED MOVING MOVING_LABELS OUTPUT_FOLDER")
fixed, moving, labels, output = map(Path, sys.argv[1:])

result = dinoreg_rt.register(fixed, moving)
result.save(output)  # warped.nii.gz and transform.h5

# The transform is an ordinary ITK transform, which needs nothing of dinoreg-rt.
transform = sitk.ReadTransform(output / "transform.h5")
warped_labels = sitk.Resample(
    sitk.ReadImage(labels), sitk.ReadImage(fixed), transform, sitk.sitkNearestNeighbor
)
sitk.WriteImage(warped_labels, output / "labels.nii.gz")

quality = result.quality
before, after = quality.feature_distance_before, quality.feature_distance_after
print(f"feature distance {before:.3f} -> {after:.3f}")
print(f"{quality.folded_percent:.3f} % folded; {result.timings_ms['solve']:.0f} ms in the solver")
print(f"verdict: {result.trust.verdict}", *result.trust.reasons, *result.warnings, sep="\n- ")

"""Choices that both the configuration and the readers of images know.

They are apart from `dinoreg_rt.types`, which imports NumPy: help texts do without it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

#: Which placement of a NIfTI header counts if it holds two, see `dinoreg_rt.io.nifti_placement`.
OrientationChoice: TypeAlias = Literal["auto", "sform", "qform"]

"""Low-latency registration of 3D medical images (CT, MR) on CPUs and GPUs.

>>> import dinoreg_rt
>>> result = dinoreg_rt.register("fixed.nii.gz", "moving.nii.gz")
>>> result.warped_sitk()  # the moving image on the fixed image's grid

Names are imported on first use, so that importing the package itself is fast.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config.parameters import RegistrationConfig
    from .device.placement import Placement
    from .errors import DinoregError
    from .fields.warp import warp_labels, warp_volume
    from .registration.plan import Plan
    from .registration.planning import plan
    from .registration.register import register
    from .registration.registrar import Registrar
    from .registration.result import RegistrationResult
    from .types import AffineTransform, DisplacementField, Geometry, LabelMap, Volume

_HOME = {
    "AffineTransform": "types",
    "DinoregError": "errors",
    "DisplacementField": "types",
    "Geometry": "types",
    "LabelMap": "types",
    "Placement": "device.placement",
    "Plan": "registration.plan",
    "Registrar": "registration.registrar",
    "RegistrationConfig": "config.parameters",
    "RegistrationResult": "registration.result",
    "Volume": "types",
    "plan": "registration.planning",
    "register": "registration.register",
    "warp_labels": "fields.warp",
    "warp_volume": "fields.warp",
}

__all__ = [
    "AffineTransform",
    "DinoregError",
    "DisplacementField",
    "Geometry",
    "LabelMap",
    "Placement",
    "Plan",
    "Registrar",
    "RegistrationConfig",
    "RegistrationResult",
    "Volume",
    "plan",
    "register",
    "warp_labels",
    "warp_volume",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib import metadata

        return metadata.version("dinoreg-rt")
    if name in _HOME:
        return getattr(importlib.import_module(f".{_HOME[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

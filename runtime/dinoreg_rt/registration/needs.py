"""The needs of each stage of a registration: memory on host and device, and least time.

`STAGES` describes each stage once. The prediction for the host, the prediction for a GPU and the
floors of `dinoreg-rt bench` are all read from it. Bytes are those of the arrays alive at a stage's
peak; the CUDA context and what allocators hold in reserve are left out.
"""

from __future__ import annotations

from .feature_needs import FEATURE_STAGES
from .field_needs import FIELD_STAGES
from .sizes import FLOAT, Sizes, Work

STAGES = FEATURE_STAGES + FIELD_STAGES


def predict_host(sizes: Sizes) -> int:
    """Return the peak on the host in bytes, in addition to the caller's images."""
    return max(stage.beside_gpu(sizes) if sizes.on_gpu else stage.arrays(sizes) for stage in STAGES)


def predict_device(sizes: Sizes) -> dict[str, int]:
    """Return the peak of each stage on the GPU in bytes, uploaded images included."""
    images = FLOAT * sum(sizes.images)
    needed = {stage.name: stage.arrays(sizes) for stage in STAGES}
    return {name: images + size for name, size in needed.items() if size}


def registration_work(sizes: Sizes) -> dict[str, list[Work]]:
    """Return the work of each stage, in the order of the stages."""
    return {stage.name: list(stage.work(sizes)) for stage in STAGES}

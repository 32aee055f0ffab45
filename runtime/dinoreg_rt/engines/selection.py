"""The choice of an engine for ``--engine``, with its reason."""

from __future__ import annotations

from collections.abc import Sequence

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..device.choice import Device
from ..errors import ConfigError
from .cache import engine_problem
from .open import ENGINES, GPU_ENGINES
from .ort_gpu import provider_problem
from .trt.library import Flavour

_FLAVOURS: tuple[Flavour, Flavour] = ("tensorrt", "tensorrt-rtx")
#: Engines that cannot run a bundle in bfloat16: the role of ONNX Runtime's CPU, and alternatives.
_WITHOUT_BFLOAT16 = {
    "ort-cpu": ("", "--engine openvino"),
    "ort-tensorrt": (
        ", which verifies this engine,",
        "--engine tensorrt with an engine of 'dinoreg-rt export engine', --engine ort-cuda",
    ),
}


def choose_engine(
    wanted: str,
    device: Device | None = None,
    bundle: Bundle | None = None,
    graphs: Sequence[Graph] = (),
) -> tuple[str, str]:
    """Return the name of the engine to use, and the reason.

    Args:
        wanted: ``auto`` or one of `ENGINES`.
        device: device of the registration; ``auto`` takes None for the CPU.
        bundle: an opened bundle; needed, with `graphs`, to find engines in the cache.
        graphs: all input sizes that will be used.

    Raises:
        ConfigError: the engine needs a GPU and the registration runs on the CPU, or the engine has
            no matrix products in the bundle's precision.
    """
    half = bundle is not None and bundle.manifest.precision == "bf16"
    if wanted in _WITHOUT_BFLOAT16 and half:
        role, other = _WITHOUT_BFLOAT16[wanted]
        raise ConfigError(
            f"--engine {wanted}: ONNX Runtime's CPU{role} has no matrix products in bfloat16, the "
            f"precision of this bundle; use {other}, or export it with --precision fp32"
        )
    if wanted != "auto":
        if wanted in GPU_ENGINES and device is not None and device.kind == "cpu":
            raise ConfigError(
                f"--engine {wanted} ({ENGINES[wanted]}) needs a GPU, and the device is the CPU; "
                "use --device cuda or --engine ort-cpu"
            )
        return wanted, f"{wanted} ({ENGINES[wanted]}), as asked"
    if device is not None and device.kind == "cuda":
        return choose_for_gpu(device.index, bundle, graphs)
    if half:
        return "openvino", f"openvino ({ENGINES['openvino']}), because the bundle is in bfloat16"
    return "ort-cpu", f"ort-cpu ({ENGINES['ort-cpu']}), which gives the same bits on every run"


def choose_for_gpu(index: int, bundle: Bundle | None, graphs: Sequence[Graph]) -> tuple[str, str]:
    """Choose TensorRT if valid engines are cached, else ONNX Runtime on the GPU, else the CPU.

    Args:
        index: index of the CUDA device.
        bundle: an opened bundle; without one the cache is not searched.
        graphs: all input sizes that will be used; one flavour of TensorRT must have them all.
    """
    problems = []
    if bundle is not None and graphs:
        for flavour in _FLAVOURS:
            found = (engine_problem(bundle, g, flavour, index) for g in dict.fromkeys(graphs))
            problem = next((p for p in found if p is not None), None)
            if problem is None:
                return flavour, f"{flavour}, because a verified engine for this GPU is in the cache"
            problems.append(f"{flavour}: {problem}")
    problem = provider_problem("ort-cuda")
    if problem is None:
        return "ort-cuda", _because("ort-cuda", problems)
    problems.append(f"ort-cuda: {problem}")
    half = bundle is not None and bundle.manifest.precision == "bf16"
    on_cpu = "openvino" if half else "ort-cpu"  # ort-cpu has no matrix products in bfloat16
    return on_cpu, _because(on_cpu, problems)


def _because(engine: str, problems: list[str]) -> str:
    text = f"{engine} ({ENGINES[engine]})"
    return f"{text}, because {'; '.join(problems)}" if problems else text

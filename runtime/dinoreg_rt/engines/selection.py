"""What ``--engine auto`` comes to on a GPU, and why."""

from __future__ import annotations

from collections.abc import Sequence

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import DinoregError
from .cache import load_engine
from .open import ENGINES
from .ort_gpu import provider_problem
from .trt.library import Flavour

_FLAVOURS: tuple[Flavour, Flavour] = ("tensorrt", "tensorrt-rtx")


def choose_for_gpu(index: int, bundle: Bundle | None, graphs: Sequence[Graph]) -> tuple[str, str]:
    """Valid TensorRT engines from the cache, else ONNX Runtime on the GPU, else on the CPU.

    Args:
        index: CUDA device.
        bundle: opened; without it the cache is not looked at.
        graphs: every input size that will be used; one kind of TensorRT has to have them all.
    """
    problems = []
    if bundle is not None and graphs:
        for flavour in _FLAVOURS:
            found = (_cache_problem(bundle, g, flavour, index) for g in dict.fromkeys(graphs))
            problem = next((p for p in found if p is not None), None)
            if problem is None:
                return flavour, f"{flavour}, because a verified engine for this GPU is in the cache"
            problems.append(f"{flavour}: {problem}")
    problem = provider_problem("ort-cuda")
    if problem is None:
        return "ort-cuda", _because("ort-cuda", problems)
    problems.append(f"ort-cuda: {problem}")
    half = bundle is not None and bundle.manifest.precision == "bf16"
    on_cpu = "openvino" if half else "ort-cpu"  # which has no bfloat16
    return on_cpu, _because(on_cpu, problems)


def _cache_problem(bundle: Bundle, graph: Graph, flavour: Flavour, index: int) -> str | None:
    try:
        load_engine(bundle, graph, flavour, index)
    except DinoregError as error:
        return str(error)
    return None


def _because(engine: str, problems: list[str]) -> str:
    text = f"{engine} ({ENGINES[engine]})"
    return f"{text}, because {'; '.join(problems)}" if problems else text

"""What ``--engine auto`` comes to on a GPU, and why."""

from __future__ import annotations

from ..errors import DinoregError
from ..manifest import Graph
from ..trt.library import Flavour
from .bundle import Bundle
from .engine_cache import load_engine
from .engines import ENGINES
from .ort_gpu import provider_problem

_FLAVOURS: tuple[Flavour, Flavour] = ("tensorrt", "tensorrt-rtx")


def choose_for_gpu(index: int, bundle: Bundle | None, graph: Graph | None) -> tuple[str, str]:
    """A valid TensorRT engine from the cache, else ONNX Runtime on the GPU, else one on the CPU.

    Args:
        index: CUDA device.
        bundle: opened; without it the cache is not looked at.
        graph: input size.
    """
    problems = []
    if bundle is not None and graph is not None:
        for flavour in _FLAVOURS:
            problem = _cache_problem(bundle, graph, flavour, index)
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

"""An exported graph on ONNX Runtime's CPU against the NumPy reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.errors import DeviceError, InputError
from dinoreg_rt.manifest import Verification
from dinoreg_rt.trt.agreement import (
    LEAST_FIRST_PERCENTILE,
    LEAST_MEAN_COSINE,
    compare_tokens,
    probe,
)

from .checkpoint import Weights
from .reference import encode


def run_graph(
    graph: Path, pixels: NDArray[np.float32], outputs: Sequence[str] = ("tokens", "cls")
) -> tuple[NDArray[np.float32], ...]:
    """Tokens and class token, or other outputs, by ONNX Runtime on the CPU.

    Raises:
        DeviceError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            "every export is verified with ONNX Runtime, which is not installed; "
            "pip install 'dinoreg-rt[cpu]' (or [gpu], never both)"
        ) from error
    options = onnxruntime.SessionOptions()
    options.enable_cpu_mem_arena = False
    session = onnxruntime.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
    return tuple(session.run(list(outputs), {"pixels": pixels}))


def compare(
    weights: Weights, graph: Path, height: int, width: int, limit: float = LEAST_MEAN_COSINE
) -> Verification:
    """Largest error and token cosines of a graph of this input size.

    Raises:
        InputError: the graph does not compute what the checkpoint says.
    """
    pixels = probe(height, width)
    expected, expected_cls = encode(weights, pixels)
    tokens, cls = run_graph(graph, pixels)
    a = np.concatenate([tokens.reshape(-1, tokens.shape[-1]), cls]).astype(np.float64)
    b = np.concatenate([expected.reshape(-1, tokens.shape[-1]), expected_cls]).astype(np.float64)
    agreement = compare_tokens(a, b)
    found = Verification(
        height=height,
        width=width,
        max_error=float(np.nan_to_num(np.abs(a - b), nan=1e30).max()),
        mean_cosine=agreement.mean_cosine,
        first_percentile_cosine=agreement.first_percentile_cosine,
    )
    if found.mean_cosine < limit or found.first_percentile_cosine < LEAST_FIRST_PERCENTILE:
        raise InputError(
            f"the exported graph does not agree with the checkpoint: token cosine "
            f"{found.mean_cosine:.5f} on average (wanted {limit}), "
            f"{found.first_percentile_cosine:.5f} at the first percentile (wanted "
            f"{LEAST_FIRST_PERCENTILE}); try --precision fp32"
        )
    return found

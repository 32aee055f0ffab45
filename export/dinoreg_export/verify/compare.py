"""Comparison of exported graphs in ONNX Runtime on the CPU with the NumPy reference."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dinoreg_rt.bundle.manifest import FINAL_ONLY, Precision, Verification
from dinoreg_rt.engines.onnx_runtime import import_onnxruntime
from dinoreg_rt.engines.trt.agreement import (
    LEAST_FIRST_PERCENTILE,
    LEAST_MEAN_COSINE,
    compare_tokens,
    probe,
)
from dinoreg_rt.errors import DeviceError, InputError

from ..checkpoint.architecture import Weights
from .reference import encode


def run_graph(
    graph: Path, pixels: NDArray[np.float32], outputs: Sequence[str] = ("tokens", "cls")
) -> tuple[NDArray[np.float32], ...]:
    """Compute the outputs of a graph by ONNX Runtime on the CPU.

    Raises:
        DeviceError: ONNX Runtime is not installed.
    """
    session = open_session(str(graph), graph.parent)
    return tuple(session.run(list(outputs), {"pixels": pixels}))


def tokens_of(graph: Path, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Compute tokens (n, rows, columns, channels) on the CPU, one slice at a time.

    Raises:
        DeviceError: ONNX Runtime is not installed.
    """
    session = open_session(str(graph), graph.parent)
    slices = (pixels[i : i + 1] for i in range(len(pixels)))
    return np.concatenate([session.run(["tokens"], {"pixels": one})[0] for one in slices])


def open_session(model: str | bytes, folder: Path) -> Any:
    """Open a graph in ONNX Runtime on the CPU, without changes to its arithmetic.

    Args:
        model: path of the graph, or the serialised graph.
        folder: folder of its weights.

    Raises:
        DeviceError: ONNX Runtime is not installed.
    """
    try:
        onnxruntime = import_onnxruntime()
    except ImportError as error:
        raise DeviceError(
            "ONNX Runtime, which verifies exports, is not installed; "
            "pip install 'dinoreg-rt[cpu]' (or [gpu], never both)"
        ) from error
    options = onnxruntime.SessionOptions()
    # Without an arena and repacked weights, it needs no more memory than the model itself.
    options.enable_cpu_mem_arena = False
    options.add_session_config_entry("session.disable_prepacking", "1")
    options.log_severity_level = 3
    # Fused products would round differently than the graph's own rounding to 8 bits and back.
    options.add_session_config_entry("session.disable_quant_qdq", "1")
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", str(folder)
    )
    return onnxruntime.InferenceSession(model, options, ["CPUExecutionProvider"])


def compare(
    weights: Weights,
    graph: Path,
    size: tuple[int, int],
    precision: Precision,
    layers: Sequence[str] = FINAL_ONLY,
) -> Verification:
    """Compare a graph of the input size (height, width) with the reference.

    The tokens of each layer are compared separately, and so is the class token if there is one.

    Raises:
        InputError: the checkpoint gives the same token for every patch, so nothing is verified.
    """
    pixels = probe(*size)
    expected, *cls = (x for x in encode(weights, pixels, layers) if x is not None)
    found = run_graph(graph, pixels, ("tokens", "cls") if cls else ("tokens",))
    _check_tokens(expected.reshape(-1, expected.shape[-1]))
    dim = weights.architecture.dim
    a, b = (
        np.concatenate([x.reshape(-1, dim) for x in values]).astype(np.float64)
        for values in (found, (expected, *cls))
    )
    agreement = compare_tokens(a, b)
    return Verification(
        height=size[0],
        width=size[1],
        max_error=float(np.nan_to_num(np.abs(a - b), nan=1e30, posinf=1e30).max()),
        mean_cosine=agreement.mean_cosine,
        first_percentile_cosine=agreement.first_percentile_cosine,
        by_rounding=precision == "bf16",
    )


def check_same_tokens(graph: Path, variant: Path, size: tuple[int, int]) -> None:
    """Require that a variant of a graph gives its tokens.

    Raises:
        InputError: it does not.
    """
    pixels = probe(*size)
    found = compare_tokens(tokens_of(variant, pixels), tokens_of(graph, pixels))
    if not found.holds:
        raise InputError(
            f"the graph for ONNX Runtime's CUDA provider differs from the others: "
            f"{found.describe()}; please report it"
        )


def _check_tokens(tokens: NDArray[np.float32]) -> None:
    """Refuse tokens (n, channels) that are all equal and could not reveal a wrong graph."""
    zero = not tokens.any()
    if zero or (len(tokens) > 1 and bool((tokens == tokens[0]).all())):
        what = "zero" if zero else "equal"
        raise InputError(
            f"all tokens of a picture are {what} with this checkpoint: its weights are empty or "
            "damaged; copy or download it again"
        )


def passes(found: Verification) -> bool:
    """Return whether a graph agrees with the checkpoint."""
    return (
        found.mean_cosine >= LEAST_MEAN_COSINE
        and found.first_percentile_cosine >= LEAST_FIRST_PERCENTILE
    )


def refusal(found: Verification, precision: Precision, passing: Precision | None) -> InputError:
    """Return an error with the graph's deviation and the precision to export instead."""
    advice = f"--precision {passing} passes" if passing else "no precision passes: please report it"
    return InputError(
        f"the {precision} graph does not agree with the checkpoint: token cosine "
        f"{found.mean_cosine:.5f} on average (at least {LEAST_MEAN_COSINE} is required), "
        f"{found.first_percentile_cosine:.5f} at the first percentile (at least "
        f"{LEAST_FIRST_PERCENTILE}); {advice}"
    )

"""Checks that a loaded graph runs on the right provider and matches its manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import DeviceError, InputError, ResourceError, is_for_want_of_memory


def check_provider(active: list[str], wanted: str) -> None:
    """Check that a session runs on the wanted provider; ONNX Runtime falls back silently.

    Raises:
        DeviceError: another provider comes first.
    """
    if not active or active[0] != wanted:
        raise DeviceError(
            f"ONNX Runtime was asked for {wanted} and took {active[0] if active else 'nothing'}; "
            "'dinoreg-rt doctor' shows what is installed"
        )


def check_session(path: Path, session: Any, bundle: Bundle, graph: Graph) -> tuple[int, int, int]:
    """Return the shape (rows, columns, channels) of an ONNX Runtime session's tokens.

    Raises:
        InputError: the graph is not what the manifest describes.
    """
    inputs = {value.name: value.shape for value in session.get_inputs()}
    outputs = {value.name: value.shape for value in session.get_outputs()}
    return check_contract(path, inputs, outputs, bundle, graph)


def check_contract(
    path: Path,
    inputs: dict[str, list[Any]],
    outputs: dict[str, list[Any]],
    bundle: Bundle,
    graph: Graph,
) -> tuple[int, int, int]:
    """Compare a graph with the manifest; return the tokens' shape (rows, columns, channels)."""
    tokens = (*bundle.token_grid(graph), bundle.manifest.channels)
    wanted_in, wanted_out = [3, graph.height, graph.width], list(tokens)
    have_in, have_out = inputs.get("pixels", []), outputs.get("tokens", [])
    if list(inputs) != ["pixels"] or have_in[1:] != wanted_in or have_out[1:] != wanted_out:
        raise InputError(
            f"{path}: the graph takes {inputs} and gives {outputs}; its manifest promises pixels "
            f"(N, {', '.join(map(str, wanted_in))}) and tokens "
            f"(N, {', '.join(map(str, wanted_out))}); export the bundle again"
        )
    return tokens


def too_little_memory(what: str, reason: str) -> ResourceError:
    """Make the error for a lack of memory at `what`."""
    return ResourceError(
        f"{what}: not enough memory for the encoder ({reason}); use a smaller model or a smaller "
        "--token-grid, or raise the memory limit of this process (ulimit -v, or the container's)"
    )


def unreadable(path: Path, error: Exception) -> InputError | ResourceError:
    """Make the error for a graph that an engine cannot load."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if is_for_want_of_memory(error):
        return too_little_memory(str(path), first)
    return InputError(f"{path}: cannot be loaded: {first}; export the bundle again")

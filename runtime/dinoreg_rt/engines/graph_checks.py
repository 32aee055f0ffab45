"""A graph that was loaded: does it run where it should, and is it what its manifest says?"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..bundle.manifest import Graph
from ..bundle.opened import Bundle
from ..errors import DeviceError, InputError, ResourceError, is_for_want_of_memory


def check_provider(active: list[str], wanted: str) -> None:
    """Stop when a session runs elsewhere than it was asked to: ONNX Runtime says nothing.

    Raises:
        DeviceError: another provider comes first.
    """
    if not active or active[0] != wanted:
        raise DeviceError(
            f"ONNX Runtime was asked for {wanted} and took {active[0] if active else 'nothing'}; "
            "'dinoreg-rt doctor' shows what is installed"
        )


def check_session(path: Path, session: Any, bundle: Bundle, graph: Graph) -> tuple[int, int, int]:
    """Shape (rows, columns, channels) of an ONNX Runtime session's tokens.

    Raises:
        InputError: the graph is not what the manifest says.
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
    """Shape (rows, columns, channels) of the tokens, after comparing graph and manifest."""
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
    """What to say where `what` needs more than there is."""
    return ResourceError(
        f"{what}: not enough memory for the encoder ({reason}); a smaller model, a smaller "
        "--token-grid or a larger limit on this process's memory (ulimit -v, the container's) is "
        "needed"
    )


def unreadable(path: Path, error: Exception) -> InputError | ResourceError:
    """What to say of a graph that an engine cannot load."""
    text = str(error).strip()
    first = text.splitlines()[0] if text else type(error).__name__
    if is_for_want_of_memory(error):
        return too_little_memory(str(path), first)
    return InputError(f"{path}: cannot be loaded: {first}; export the bundle again")

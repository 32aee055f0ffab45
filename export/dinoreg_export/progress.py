"""Progress bars of the export commands."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle.files import Progress


@contextmanager
def progress_bars(*, shown: bool) -> Iterator[Progress]:
    """Show a progress bar for each stage on a terminal, and nothing in a pipe.

    Yields the function that receives a stage's name and its completed fraction.
    """
    from rich.console import Console
    from rich.progress import Progress as Bars

    console = Console(stderr=True, quiet=not shown)
    with Bars(console=console, disable=not (shown and console.is_terminal)) as bars:
        tasks: dict[str, Any] = {}

        def report(stage: str, fraction: float) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=1.0)
            bars.update(tasks[stage], completed=fraction)

        yield report

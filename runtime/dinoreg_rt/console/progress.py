"""Progress reports: bars on a terminal, plain lines in a pipe, or nothing.

All of them go to stderr; stdout holds only results.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: Seconds between two lines about one stage in a pipe: at first, and after a long time.
_LINE_INTERVAL_S, _LONGEST_INTERVAL_S = 10.0, 60.0


class Reporter(Protocol):
    """Receives progress; may be passed to `register` as ``progress``."""

    def __call__(self, stage: str, fraction: float) -> None:
        """Report that `stage` has done `fraction` (0 to 1) of its work; a new name begins a stage.

        Speed is measured from the last call with 0; the time before that is preparation.
        """

    def expect(self, stage: str, count: int, unit: str) -> None:
        """Announce that `stage` consists of `count` items, whose speed is then reported."""

    def say(self, topic: str, text: str) -> None:
        """Report a line of information: a decision and its reason, a warning, or a path."""


class QuietReporter:
    """A reporter that prints nothing."""

    def __call__(self, stage: str, fraction: float) -> None:
        """Ignore the progress."""

    def expect(self, stage: str, count: int, unit: str) -> None:
        """Ignore the announcement."""

    def say(self, topic: str, text: str) -> None:
        """Ignore the line."""


class LineReporter:
    """A reporter that prints plain lines without control characters, for pipes and log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = self._finished = ""
        self._began = self._started = self._spoke = 0.0
        self._expected: dict[str, tuple[int, str]] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        """Print a line when a stage ends, and from time to time while it runs."""
        now = time.monotonic()
        if fraction >= 1 and stage == self._finished:
            return  # reported already
        if stage != self._stage:
            self.finish()
            self._stage, self._began, self._spoke = stage, now, now
        if fraction <= 0:
            self._started = now
        if fraction >= 1:
            self.finish()
        elif now - self._spoke > _line_interval_s(now - self._began):
            self._spoke = now
            done, pace = _pace(fraction, now - self._started, self._expected.get(stage))
            text = f"{stage}: {done or f'{fraction:.0%}'} after {duration(now - self._began)}"
            self._print(", ".join([text, *pace]))

    def expect(self, stage: str, count: int, unit: str) -> None:
        """Add count, speed and remaining time to the lines of `stage`."""
        self._expected[stage] = (count, unit)

    def say(self, topic: str, text: str) -> None:
        """Print ``topic: text``."""
        self._print(f"{topic}: {text}")

    def finish(self) -> None:
        """End the current stage, if any."""
        if self._stage:
            self._print(f"{self._stage}: done in {time.monotonic() - self._began:.2f} s")
            self._stage, self._finished = "", self._stage

    def _print(self, line: str) -> None:
        with suppress(OSError):  # a log that is full or gone must not end the work
            print(line, file=self._stream, flush=True)


class TerminalReporter:
    """A reporter that shows a bar with elapsed time for each stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._stage = ""
        self._started = 0.0
        self._expected: dict[str, tuple[int, str]] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        """Move the stage's bar; a new stage completes the previous one."""
        now = time.monotonic()
        if stage != self._stage:
            self.finish()
            self._stage, self._started = stage, now
            self._task = self._bars.add_task(stage, total=1.0, pace="")
        if fraction <= 0:
            self._started = now
        if self._task is not None:
            done, pace = _pace(fraction, now - self._started, self._expected.get(stage))
            text = ", ".join([done, *pace])
            self._bars.update(self._task, completed=min(fraction, 1.0), pace=text)

    def expect(self, stage: str, count: int, unit: str) -> None:
        """Add count, speed and remaining time to the bar of `stage`."""
        self._expected[stage] = (count, unit)

    def say(self, topic: str, text: str) -> None:
        """Print a line above the bars."""
        from rich.text import Text

        self._bars.console.print(Text.assemble((f"{topic}: ", "bold"), text))

    def finish(self) -> None:
        """Fill the bar of the current stage and stop its clock."""
        if self._task is not None:
            self._bars.update(self._task, completed=1.0)
            self._bars.stop_task(self._task)
            self._task = None


def duration(seconds: float) -> str:
    """Format a duration, such as ``40 s``, ``12 min`` or ``2 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _line_interval_s(elapsed_s: float) -> float:
    """Return the seconds between two lines, which grow so that long stages fill no logs."""
    return min(max(_LINE_INTERVAL_S, elapsed_s / 10), _LONGEST_INTERVAL_S)


def _pace(
    fraction: float, elapsed_s: float, expected: tuple[int, str] | None
) -> tuple[str, list[str]]:
    """Return the count that a stage has reached, then its speed and remaining time."""
    if expected is None:
        return "", []
    count, unit = expected
    done = f"{round(count * fraction)} of {count} {unit}"
    if fraction <= 0 or elapsed_s <= 0:
        return done, []
    speed = f"{count * fraction / elapsed_s:.3g} {unit}/s"
    left = elapsed_s * (1 / fraction - 1)
    return done, [speed, f"{duration(left)} left"] if fraction < 1 else [speed]


@contextmanager
def reporting(*, quiet: bool, stream: TextIO | None = None) -> Iterator[Reporter]:
    """Provide the reporter that suits `stream` (by default stderr); finish its display at the end.

    Without a stream, because stderr is closed, nothing is reported.
    """
    stream = stream or sys.stderr
    if quiet or stream is None:
        yield QuietReporter()
    elif stream.isatty():
        with _bars(stream) as bars:
            reporter = TerminalReporter(bars)
            yield reporter
            reporter.finish()
    else:
        lines = LineReporter(stream)
        yield lines
        lines.finish()


def _bars(stream: TextIO) -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

    console = Console(file=stream, highlight=False)
    return Progress(
        TextColumn("{task.description:<12}"),
        BarColumn(),
        TaskProgressColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[pace]}"),
        console=console,
    )

"""What a run says while it works: bars on a terminal, plain lines in a pipe, or nothing.

Everything goes to stderr, so that stdout holds results only.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

#: In a pipe, a stage that goes on says so this often: at first, and after a long while.
_LINE_INTERVAL_S, _LONGEST_INTERVAL_S = 10.0, 60.0


class Reporter(Protocol):
    """Receives progress. It is also the ``progress`` callable that `register` takes."""

    def __call__(self, stage: str, fraction: float) -> None:
        """`stage` has done `fraction` (0 to 1) of its work; a new name begins a new stage.

        Speed is counted from the last call with 0: what came before is preparation.
        """

    def expect(self, stage: str, count: int, unit: str) -> None:
        """`stage` will go through so many things: from then on they are counted, with their speed
        and the time left."""

    def say(self, topic: str, text: str) -> None:
        """One line of information: a decision and why, a warning, where the results are."""


class QuietReporter:
    """Says nothing."""

    def __call__(self, stage: str, fraction: float) -> None:
        """Nothing."""

    def expect(self, stage: str, count: int, unit: str) -> None:
        """Nothing."""

    def say(self, topic: str, text: str) -> None:
        """Nothing."""


class LineReporter:
    """Plain lines without control characters, for pipes and log files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._stage = self._finished = ""
        self._began = self._started = self._spoke = 0.0
        self._expected: dict[str, tuple[int, str]] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        """A line when a stage ends, and now and then while it goes on."""
        now = time.monotonic()
        if fraction >= 1 and stage == self._finished:
            return  # told twice
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
        """From now on lines of `stage` say how far and how fast it is, and the time left."""
        self._expected[stage] = (count, unit)

    def say(self, topic: str, text: str) -> None:
        """``topic: text``."""
        self._print(f"{topic}: {text}")

    def finish(self) -> None:
        """Close the stage that is open, if one is."""
        if self._stage:
            self._print(f"{self._stage}: done in {time.monotonic() - self._began:.2f} s")
            self._stage, self._finished = "", self._stage

    def _print(self, line: str) -> None:
        with suppress(OSError):  # a log that is full, or gone, must not end the work
            print(line, file=self._stream, flush=True)


class TerminalReporter:
    """A bar with elapsed time for each stage."""

    def __init__(self, bars: Progress) -> None:
        self._bars = bars
        self._task: TaskID | None = None
        self._stage = ""
        self._started = 0.0
        self._expected: dict[str, tuple[int, str]] = {}

    def __call__(self, stage: str, fraction: float) -> None:
        """Move the stage's bar; a new stage completes the one before it."""
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
        """From now on the bar of `stage` says how far and how fast it is, and the time left."""
        self._expected[stage] = (count, unit)

    def say(self, topic: str, text: str) -> None:
        """A line above the bars."""
        from rich.text import Text

        self._bars.console.print(Text.assemble((f"{topic}: ", "bold"), text))

    def finish(self) -> None:
        """Fill the bar of the open stage and stop its clock."""
        if self._task is not None:
            self._bars.update(self._task, completed=1.0)
            self._bars.stop_task(self._task)
            self._task = None


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``2 h 05 min``."""
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def _line_interval_s(elapsed_s: float) -> float:
    """Seconds from one line to the next: a log of an hour has no use for hundreds of them."""
    return min(max(_LINE_INTERVAL_S, elapsed_s / 10), _LONGEST_INTERVAL_S)


def _pace(
    fraction: float, elapsed_s: float, expected: tuple[int, str] | None
) -> tuple[str, list[str]]:
    """How far a stage is that goes through countable things; its speed and the time left."""
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
    """The reporter that fits `stream` (default stderr, if open); tidies the terminal at the end."""
    stream = stream or sys.stderr
    if quiet or stream is None:  # stderr was closed by who started this
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

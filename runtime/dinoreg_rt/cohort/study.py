"""Find what is missing of a cohort, do it, and record each failure at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..console.interruption import Terminated
from .jobs import Job, ordered, shard_of
from .schedule import Attempt, Workers, run_tasks
from .state import clean, finished, forget_failure, write_failure
from .summary import failures_of, write_failures
from .worker import Task, is_scored

if TYPE_CHECKING:
    from ..console.progress import Reporter


@dataclass(frozen=True)
class Work:
    """The work of one process.

    Attributes:
        everything: all pairs, in their order.
        own: the pairs of this process, those of one fixed image together.
        tasks: what is missing of the results of `own`.
    """

    everything: Sequence[Job]
    own: Sequence[Job]
    tasks: Sequence[Task]

    @property
    def pairs(self) -> list[Job]:
        """The pairs with a task."""
        return [task.job for task in self.tasks]


def plan_work(
    everything: Sequence[Job],
    chosen: Sequence[Job],
    shard: tuple[int, int] | None,
    reporter: Reporter,
) -> Work:
    """Find out what is done already.

    Args:
        everything: all pairs.
        chosen: the pairs to do, or to divide into shards.
        shard: number of this shard, from 1, and their count; None: all chosen pairs.
        reporter: is told how much there is to do.
    """
    own = shard_of(ordered(chosen), *(shard or (1, 1)))
    reports = finished(own)
    tasks = [Task(job) for job in own if job.name not in reports]
    tasks += [
        Task(job, register=False)
        for job in own
        if job.name in reports and not is_scored(job, reports[job.name])
    ]
    part = "" if shard is None else f" of part {shard[0]} of {shard[1]}"
    reporter.say("cohort", f"{len(own)} pairs{part}, {len(own) - len(tasks)} of them done before")
    return Work(everything, own, tasks)


def do_work(
    work: Work, output: Path, workers: Workers | None, retries: int, reporter: Reporter
) -> None:
    """Do all tasks; a pair that fails for good is listed at once, and the others go on.

    Args:
        work: the tasks.
        output: output folder of the cohort.
        workers: do the tasks, and are closed at the end; None without tasks.
        retries: how often a pair that fails is tried again.
        reporter: is told about progress and failures.

    Raises:
        KeyboardInterrupt: with a note on how to resume, as for `Terminated`.
    """
    with_task = {task.job.name for task in work.tasks}
    for job in work.own:
        if job.name not in with_task:
            forget_failure(job)
            clean(job)
    if workers is None:
        return
    total, done = len(work.tasks), 0
    reporter.expect("pairs", total, "pairs")
    reporter("pairs", 0.0)
    try:
        for one in run_tasks(work.tasks, workers, retries):
            _note(one, work, output, reporter)
            done += one.final
            reporter("pairs", done / total)
    except (KeyboardInterrupt, Terminated) as stop:
        stop.add_note(
            f"{done} of {total} pairs were done, and their folders are complete; the same command "
            "resumes with the others"
        )
        raise


def _note(one: Attempt, work: Work, output: Path, reporter: Reporter) -> None:
    job, outcome = one.task.job, one.outcome
    if not outcome.error:
        forget_failure(job)
    elif not one.final:
        reporter.say("trying again", f"{job.name}: {outcome.error}")
    else:
        reporter.say("failed", f"{job.name}: {outcome.error}")
        write_failure(
            job,
            error=outcome.error,
            exit_code=outcome.exit_code,
            tries=one.tries,
            registered=outcome.registered,
        )
        write_failures(output, failures_of(work.everything))

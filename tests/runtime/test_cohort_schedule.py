"""Who does what in a cohort: retries, dead workers, fixed images, shards and memory."""

from __future__ import annotations

import fcntl
import threading
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest

import dinoreg_rt.cohort.capacity as capacity
from dinoreg_rt.cohort.jobs import Job, ordered, shard_of
from dinoreg_rt.cohort.names import STATE
from dinoreg_rt.cohort.schedule import run_tasks
from dinoreg_rt.cohort.state import alone
from dinoreg_rt.cohort.worker import Outcome, Task
from dinoreg_rt.config.parameters import RegistrationConfig
from dinoreg_rt.evaluate.pair import PairFiles
from dinoreg_rt.run.request import RunRequest

CONFIG = RegistrationConfig(device="cpu")


def job(name: str, fixed: str = "f", **values) -> Job:
    config = CONFIG.changed(**values)
    request = RunRequest(Path(fixed), Path("m"), Path("out") / name, config)
    return Job(request, PairFiles(name))


class FakeWorkers:
    """Workers that do what a plan says: a list of outcomes per pair, the last of which repeats."""

    def __init__(self, count: int, plan: dict[str, list[Outcome | None]] | None = None) -> None:
        self.count, self.plan, self.closed = count, plan or {}, False
        self.busy: dict[int, str] = {}
        self.done: list[tuple[int, str]] = []

    def send(self, worker: int, task: Task) -> None:
        assert worker not in self.busy
        self.busy[worker] = task.job.name

    def wait(self) -> list[tuple[int, Outcome | None]]:
        worker = min(self.busy)
        name = self.busy.pop(worker)
        self.done.append((worker, name))
        outcomes = self.plan.get(name, [Outcome()])
        return [(worker, outcomes.pop(0) if len(outcomes) > 1 else outcomes[0])]

    def close(self) -> None:
        self.closed = True


def test_failures_and_dead_workers_are_tried_again():
    failed = Outcome("broken", 1)
    workers = FakeWorkers(2, {"b": [failed], "c": [None, failed, Outcome()], "d": [None]})
    attempts = list(run_tasks([Task(job(name)) for name in "abcd"], workers, retries=2))
    last = {one.task.job.name: one for one in attempts if one.final}
    assert Counter(name for _, name in workers.done) == {"a": 1, "b": 3, "c": 3, "d": 3}
    assert {name: one.outcome.error for name, one in last.items() if name in "abc"} == {
        "a": "",
        "b": "broken",
        "c": "",
    }
    assert last["d"].outcome.exit_code == 6
    assert "killed" in last["d"].outcome.error
    assert last["d"].tries == 3
    assert workers.closed


@pytest.mark.parametrize(
    ("code", "tries"), [(1, 3), (3, 1), (4, 1), (5, 3), (6, 3), (7, 3), (8, 1)]
)
def test_what_would_fail_again_is_tried_once(code, tries):
    workers = FakeWorkers(1, {"a": [Outcome("broken", code)]})
    (last,) = (one for one in run_tasks([Task(job("a"))], workers, retries=2) if one.final)
    assert last.tries == tries


def test_what_is_registered_is_not_registered_again_because_its_scores_failed():
    workers = FakeWorkers(1, {"a": [Outcome("no memory", 6, registered=True), Outcome()]})
    attempts = list(run_tasks([Task(job("a"))], workers, retries=1))
    assert [one.task.register for one in attempts] == [True, False]


def test_workers_are_closed_when_the_caller_stops():
    workers = FakeWorkers(1)
    attempts = run_tasks([Task(job("a")), Task(job("b"))], workers, retries=0)
    next(attempts)
    attempts.close()
    assert workers.closed


def test_pairs_of_one_fixed_image_go_to_one_worker_until_another_is_idle():
    tasks = [Task(job(f"{fixed}{n}", fixed)) for n in range(3) for fixed in "xy"]
    workers = FakeWorkers(2)
    workers.wait = lambda real=workers.wait: [*real(), *real()]  # both are equally fast
    list(run_tasks(tasks, workers, retries=0))
    assert [{name[0] for w, name in workers.done if w == worker} for worker in (0, 1)] == [
        {"x"},
        {"y"},
    ]
    shared = FakeWorkers(2)
    list(run_tasks([Task(job(f"x{n}", "x")) for n in range(4)], shared, retries=0))
    assert {worker for worker, _ in shared.done} == {0, 1}


def test_shards_part_the_pairs_and_keep_fixed_images_together():
    jobs = [job(f"{fixed}{n}", fixed) for n in range(4) for fixed in "xyz"]
    parts = [shard_of(ordered(jobs), n, 5) for n in range(1, 6)]
    assert [one for part in parts for one in part] == ordered(jobs)
    assert {len(part) for part in parts} <= {2, 3}
    assert [one.name[0] for one in ordered(jobs)] == list("xxxxyyyyzzzz")
    assert (
        shard_of(jobs[:1], 1, 3) + shard_of(jobs[:1], 2, 3) + shard_of(jobs[:1], 3, 3) == jobs[:1]
    )


def test_other_initial_transforms_share_the_work_on_the_fixed_image_and_other_options_do_not():
    assert job("a", initial="none").shared() == job("b", initial="centre").shared()
    assert job("a", smoothness=1.0).shared() != job("b", smoothness=2.0).shared()


@pytest.mark.parametrize(
    ("free_gib", "wanted", "threads", "expected"),
    [
        (100, None, 0, (8, 1)),  # one for each CPU
        (5, None, 0, (3, 2)),  # 80 % of 5 GiB hold three of 1.2 GiB
        (1, None, 0, (1, 8)),
        (1, 4, 0, (4, 2)),  # as asked
        (100, None, 4, (2, 4)),
    ],
)
def test_as_many_workers_as_cpus_and_memory_allow(monkeypatch, free_gib, wanted, threads, expected):
    monkeypatch.setattr(capacity, "usable_cpus", lambda: (8, "all of them"))
    monkeypatch.setattr(capacity, "memory_bytes", lambda: (0, free_gib << 30))
    monkeypatch.setattr(capacity, "_largest_need", lambda jobs: 1_288_490_189)
    config = CONFIG.changed(threads=threads)
    crew = capacity.crew(config, [job(str(n)) for n in range(20)], wanted)
    assert (len(crew.settings), crew.settings[0].threads) == expected


def test_one_worker_for_each_gpu(monkeypatch):
    device = replace(capacity.check_demands(CONFIG), kind="cuda")
    monkeypatch.setattr(capacity, "check_demands", lambda config: device)
    monkeypatch.setattr(capacity, "_gpus", lambda wanted: ["cuda:0", "cuda:1"])
    jobs = [job(str(n)) for n in range(9)]
    assert [one.device for one in capacity.crew(CONFIG, jobs, None).settings] == [
        "cuda:0",
        "cuda:1",
    ]
    devices = [one.device for one in capacity.crew(CONFIG, jobs, 3).settings]
    assert devices == ["cuda:0", "cuda:1", "cuda:0"]


def test_who_waited_for_a_pair_has_it_alone(tmp_path):
    one = job("a")
    one = replace(one, request=replace(one.request, output=tmp_path / "a"))
    file = tmp_path / STATE / "a.lock.json"
    entered, leave = threading.Event(), threading.Event()

    def wait_and_stay() -> None:
        with alone(one):
            entered.set()
            leave.wait(10)

    second = threading.Thread(target=wait_and_stay)
    with alone(one):
        second.start()
        assert not entered.wait(0.2)
    try:
        assert entered.wait(10)
        with file.open("rb") as stream, pytest.raises(BlockingIOError):
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        leave.set()
        second.join()
    assert not file.exists()

"""Kernels in a forked process, which has none of its parent's threads and starts its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

SCRIPT = """
import multiprocessing
import sys

import numpy as np
from dinoreg_kernels import resample

IMAGE = np.random.default_rng(0).random((32, 64, 64), np.float32)


def warp(threads):
    return resample(IMAGE, IMAGE.shape, np.eye(3, 4), threads=threads)


def child(threads, queue):
    queue.put(bool((warp(threads) == IMAGE).all()))


first, second = int(sys.argv[1]), int(sys.argv[2])
warp(first)
context = multiprocessing.get_context("fork")
queue = context.Queue()
context.Process(target=child, args=(second, queue), daemon=True).start()
print(queue.get(), flush=True)
"""


@pytest.mark.parametrize(("first", "second"), [(2, 2), (2, 0), (2, 1), (1, 2)])
def test_a_forked_process_does_not_wait_for_threads_of_its_parent(first, second):
    command = [sys.executable, "-c", SCRIPT, str(first), str(second)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        text, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:  # a waiting child would outlive it
            os.killpg(process.pid, signal.SIGKILL)
    assert text == "True\n"

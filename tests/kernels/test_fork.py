"""Kernels in a forked process, which raise an error instead of waiting for missing threads."""

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
from dinoreg_kernels import KernelUnavailable, resample

IMAGE = np.random.default_rng(0).random((32, 64, 64), np.float32)


def warp(threads):
    return resample(IMAGE, IMAGE.shape, np.eye(3, 4), threads=threads)


def child(threads, queue):
    try:
        queue.put(bool((warp(threads) == IMAGE).all()))
    except KernelUnavailable as error:
        queue.put(str(error))


first, second = int(sys.argv[1]), int(sys.argv[2])
warp(first)
context = multiprocessing.get_context("fork")
queue = context.Queue()
context.Process(target=child, args=(second, queue), daemon=True).start()
print(queue.get(), flush=True)
"""


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (2, 2, "forked from one that has used the kernels"),
        (2, 0, "'spawn'"),
        (2, 1, "True"),
        (1, 2, "True"),
    ],
)
def test_a_forked_process_gets_an_error_instead_of_hanging(first, second, said):
    command = [sys.executable, "-c", SCRIPT, str(first), str(second)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        text, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:  # a waiting child would outlive it
            os.killpg(process.pid, signal.SIGKILL)
    assert said in text

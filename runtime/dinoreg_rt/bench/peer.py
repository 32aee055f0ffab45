"""Run the published convexAdam on the same images and device, in its own environment."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import ConfigError, DeviceError
from ..features.mind import MindFeatures
from ..registration.features import working_images
from ..types import Volume

if TYPE_CHECKING:
    from ..registration.plan import Plan

_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")


def check_peer(python: Path, *, encoder: str | None) -> None:
    """Check that the peer can run, before anything is measured.

    Raises:
        ConfigError: an encoder is configured; the published package computes MIND-SSC itself.
        DeviceError: the interpreter cannot be run, or cannot import convexAdam.
    """
    if encoder is not None:
        raise ConfigError(
            "--against convexadam compares the optimisers on MIND-SSC, which the published package "
            "computes itself; omit --encoder"
        )
    test = "import convexAdam.convex_adam_MIND"
    try:
        done = subprocess.run([python, "-c", test], capture_output=True, text=True, check=False)
    except OSError as error:
        raise DeviceError(
            f"--peer-python {python} cannot be run: {error.strerror}; give the Python of an "
            "environment with convexAdam"
        ) from error
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DeviceError(
            f"--peer-python {python} cannot import convexAdam ({last}); install it with "
            f"{python} -m pip install convexAdam"
        )


def run_convexadam(
    python: Path, volumes: tuple[Volume, Volume], plan: Plan, runs: int
) -> dict[str, Any]:
    """Run convexAdam and return its report: ``version``, seconds of each call, peak memory.

    Its input is that of our features: both images windowed to 0..1 on the working grid, after the
    initial alignment. It is timed once more with our features on the control grid.

    Raises:
        DeviceError: convexAdam fails.
    """
    child = resources.files(__package__) / "convexadam_child.py"
    device = plan.device
    environment = os.environ | dict.fromkeys(_THREAD_VARIABLES, str(device.threads))
    with tempfile.TemporaryDirectory() as folder, resources.as_file(child) as script:
        roles = ("fixed", "moving")
        files = [Path(folder) / f"{role}.npy" for role in roles]
        features = [Path(folder) / f"{role}_features.npy" for role in roles]
        with device.active():
            fixed, moving = plan.sides(*volumes)
            # The peer has one grid: the moving image is sampled on the fixed image's.
            moving = replace(moving, working=plan.grids.working)
            images = working_images((fixed, moving), plan.grids.pool_zyx, device)
            pair = MindFeatures.of(plan.config).compute(*images, device)
            arrays = [image.array for image in images]
            arrays += [found[..., : pair.channels] for found in (pair.fixed, pair.moving)]
            for file, array in zip(files + features, arrays, strict=True):
                np.save(file, device.download(array))
        command = [str(part) for part in (python, script, *files)]
        command += ["--features", *map(str, features)]
        command += ["--pool", *map(str, plan.grids.pool_zyx)]
        command += ["--runs", str(runs), "--threads", str(device.threads)]
        command += ["--device", device.name]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise DeviceError(f"convexAdam fails on this pair on {device.name}: {last}")
    report: dict[str, Any] = json.loads(done.stdout)
    return report

"""The GPU and driver of this machine, as an engine's key names them."""

from __future__ import annotations

import re
from pathlib import Path

from ...device.cuda_driver import query_cuda_driver
from ...errors import DeviceError
from .record import Gpu

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def identify_gpu(index: int) -> Gpu:
    """Describe the CUDA device with an index, among those of ``CUDA_VISIBLE_DEVICES``.

    Raises:
        DeviceError: there is no driver, or no such device.
    """
    driver = query_cuda_driver()
    if not driver.gpus:
        raise DeviceError(
            f"no CUDA device can be used: {driver.problem}; 'dinoreg-rt doctor' shows what is "
            "missing"
        )
    if index >= len(driver.gpus):
        raise DeviceError(
            f"there is no CUDA device {index}, only {len(driver.gpus)} (numbered from 0)"
        )
    gpu, version = driver.gpus[index], driver.version or (0, 0)
    cuda = f"CUDA {version[0]}.{version[1]}"
    release = _driver_release()
    return Gpu(
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=f"{release} ({cuda})" if release else cuda,
    )


def _driver_release() -> str | None:
    """Return the driver's release, such as 580.95.05; None without the driver's file, as in WSL."""
    try:
        found = re.search(r"\b\d{3,4}\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text("utf-8"))
    except OSError:
        return None
    return found.group() if found else None

"""Which GPU and driver this is, as an engine's key names them."""

from __future__ import annotations

import re
from pathlib import Path

from ...device.cuda_driver import query_cuda_driver
from ...errors import DeviceError
from .record import Gpu

_DRIVER_FILE = Path("/proc/driver/nvidia/version")


def identify_gpu(index: int) -> Gpu:
    """CUDA device `index`, counted as CUDA counts (``CUDA_VISIBLE_DEVICES`` holds).

    Raises:
        DeviceError: no driver, or no such device.
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
    """Such as 580.95.05; None where the driver keeps no such file, as under WSL."""
    try:
        found = re.search(r"\b\d{3,4}\.\d+(\.\d+)?\b", _DRIVER_FILE.read_text("utf-8"))
    except OSError:
        return None
    return found.group() if found else None

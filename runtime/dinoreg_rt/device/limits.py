"""CPUs, memory and folders that this process may use, including a container's limits."""

from __future__ import annotations

import os
from pathlib import Path

from ..errors import InputError

_CGROUP = Path("/sys/fs/cgroup")


def usable_cpus() -> tuple[int, str]:
    """Return the number of CPUs that this process may use, and what limits it."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on Linux
        count = os.cpu_count() or 1
    limit = "affinity" if count < (os.cpu_count() or 1) else "all of them"
    quota = _cgroup_cpus()
    if quota is not None and quota < count:
        return max(1, int(quota)), f"the container's quota of {quota:g} CPUs"
    return count, limit


def memory_bytes() -> tuple[int, int]:
    """Return the memory available to this process in total, and the free part of it."""
    import psutil

    memory = psutil.virtual_memory()
    total, free = int(memory.total), int(memory.available)
    limit = _read_number(_CGROUP / "memory.max", _CGROUP / "memory/memory.limit_in_bytes")
    if limit is not None and limit < total:
        used = _read_number(_CGROUP / "memory.current", _CGROUP / "memory/memory.usage_in_bytes")
        total, free = limit, min(free, max(0, limit - (used or 0)))
    return total, free


def _cgroup_cpus() -> float | None:
    try:
        quota, period = (_CGROUP / "cpu.max").read_text("ascii").split()
        return None if quota == "max" else int(quota) / int(period)
    except (OSError, ValueError):
        pass  # cgroup v1, or no cgroup
    allowed = _read_number(_CGROUP / "cpu/cpu.cfs_quota_us")
    period_us = _read_number(_CGROUP / "cpu/cpu.cfs_period_us")
    return allowed / period_us if allowed and allowed > 0 and period_us else None


def _read_number(*files: Path) -> int | None:
    """Return the number in the first file that can be read and holds one."""
    for file in files:
        try:
            return int(file.read_text("ascii"))
        except (OSError, ValueError):
            continue
    return None


def user_folder(variable: str, name: str) -> Path:
    """Return the folder that an environment variable names, or ``.cache/dinoreg/NAME`` at home.

    Without a home this is an error: a temporary folder is writable by everybody, so somebody else
    could have placed there what is read here.

    Raises:
        InputError: the variable is not set and the user's home is unknown.
    """
    given = os.environ.get(variable)
    if given:
        return Path(given)
    try:
        home = Path.home()
    except RuntimeError as error:  # as in a container whose user is unknown to it
        raise InputError(
            f"{variable} is not set, and this user has no home directory (HOME is not set either); "
            f"set HOME, or {variable} to a folder"
        ) from error
    return home / ".cache" / "dinoreg" / name


def cache_folder() -> Path:
    """Return ``DINOREG_CACHE``, or a folder in the user's cache; errors as in `user_folder`."""
    return user_folder("DINOREG_CACHE", "tokens")

"""Optional packages, and whether they fit each other and the driver.

Only the packages' metadata is read: importing a broken package may end the process.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from ctypes.util import find_library
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from .cuda_driver import CudaDriver

Status = Literal["ok", "absent", "problem"]

#: CUDA version that the packages of the extras are built for, and the driver that supports it.
CUDA_MAJOR, DRIVER = 13, "580"
#: Packages that show that a GPU is meant to be used. TensorRT-RTX compiles without one.
_GPU_PACKAGES = (
    "cupy-cuda13x",
    "cupy-cuda12x",
    "onnxruntime-gpu",
    "tensorrt-cu13",
    "tensorrt-cu12",
)
#: CUDA libraries that CuPy loads on first use, and their distributions.
_CUDA_LIBRARIES = {
    "nvrtc": "nvidia-cuda-nvrtc",
    "cudart": "nvidia-cuda-runtime",
    "cublas": "nvidia-cublas",
    "cusolver": "nvidia-cusolver",
    "cusparse": "nvidia-cusparse",
}
_PLAIN = (
    ("OpenVINO", ("openvino",), "openvino"),
    ("PyCUDA", ("pycuda",), "pycuda"),
    ("Ray", ("ray",), "ray"),
)


@dataclass(frozen=True)
class Finding:
    """One line of the table; `remedy` is the command to type."""

    name: str
    status: Status
    value: str
    remedy: str = ""


def driver_finding(driver: CudaDriver) -> Finding:
    """Return whether the driver is missing, without a device, too old, or in order."""
    wanted = installed_version(_GPU_PACKAGES)
    if driver.version is None:
        if wanted is None:
            return Finding("CUDA driver", "absent", driver.problem)
        return Finding(
            "CUDA driver",
            "problem",
            f"{driver.problem}, but {wanted} is installed",
            f"install NVIDIA's driver {DRIVER} or newer; in a container, start it with --gpus all",
        )
    version = f"CUDA {driver.version[0]}.{driver.version[1]}"
    if not driver.gpus:
        return Finding(
            "CUDA driver",
            "problem",
            f"{version}, but no device: {driver.problem}",
            "nvidia-smi -L; in a container, start it with --gpus all",
        )
    if driver.version[0] < CUDA_MAJOR:
        return Finding(
            "CUDA driver",
            "problem",
            f"{version} is too old; the packages need CUDA {CUDA_MAJOR}.0",
            f"install NVIDIA's driver {DRIVER} or newer",
        )
    return Finding("CUDA driver", "ok", version)


def package_findings(driver: CudaDriver) -> list[Finding]:
    """Return one line for each optional package."""
    found = [_onnxruntime(driver), _cupy(driver), _tensorrt(), _rtx()]
    return found + [_plain(*package) for package in _PLAIN]


def installed_version(names: Iterable[str]) -> str | None:
    """Return ``name version`` of the first installed distribution; None without one."""
    for name in names:
        try:
            return f"{name} {metadata.version(name)}"
        except metadata.PackageNotFoundError:
            continue
    return None


def install_command(extra: str) -> str:
    """Return the command that installs an extra in the versions this release needs."""
    wanted = " ".join(f"'{name}'" for name in _requirements(extra)) or f"'.[{extra}]'"
    if extra == "gpu" and installed_version(["onnxruntime"]):
        # Both variants of ONNX Runtime write into one folder.
        return f"pip uninstall -y onnxruntime && pip install {wanted}"
    return f"pip install {wanted}"


def cuda_kernels() -> Finding:
    """Return whether the distribution of CUDA kernels is there, in the version of this package."""
    name, own = "dinoreg-kernels-cu13", installed_version(["dinoreg-rt"])
    wanted = f"{name}=={own.split()[1]}" if own else name
    remedy = f"pip install '{wanted}'  # or from the sources: pip install ./packaging/{name}"
    package = installed_version([name])
    if package is None:
        return Finding("CUDA kernels", "absent", "not installed", remedy)
    if own and own.split()[1] != package.split()[1]:
        return Finding("CUDA kernels", "problem", f"{package} beside {own}", remedy)
    return Finding("CUDA kernels", "ok", package, remedy)


def toolkit_command(version: str = "") -> str:
    """Return the command that installs the CUDA libraries of `gpu`, or of another version."""
    wanted = next((r for r in _requirements("gpu") if r.startswith("cuda-toolkit")), "")
    name, _, pinned = wanted.partition("==")
    return f"pip install '{name}=={version or pinned}'" if wanted else install_command("gpu")


def _requirements(extra: str) -> list[str]:
    try:
        requirements = metadata.requires("dinoreg-rt") or []
    except metadata.PackageNotFoundError:
        return []
    marked = [r.partition(";") for r in requirements]
    return [
        name.strip() for name, _, mark in marked if f"extra == '{extra}'" in mark.replace('"', "'")
    ]


def _plain(name: str, distributions: Iterable[str], extra: str) -> Finding:
    version = installed_version(distributions)
    if version is None:
        return Finding(name, "absent", "not installed", install_command(extra))
    return Finding(name, "ok", version)


def _onnxruntime(driver: CudaDriver) -> Finding:
    cpu, gpu = installed_version(["onnxruntime"]), installed_version(["onnxruntime-gpu"])
    if cpu and gpu:
        # Both write into one folder: the last one installed wins, and removing one breaks the
        # other.
        package = "onnxruntime-gpu" if driver.gpus else "onnxruntime"
        return Finding(
            "ONNX Runtime",
            "problem",
            f"{cpu} and {gpu} overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu && "
            f"pip install --force-reinstall {package}",
        )
    if gpu and not installed_version(["nvidia-cudnn-cu13"]) and find_library("cudnn") is None:
        return Finding(
            "ONNX Runtime",
            "problem",
            f"{gpu} without cuDNN: its CUDA provider cannot be loaded",
            "pip install 'nvidia-cudnn-cu13>=9,<10'",
        )
    if cpu or gpu:
        return Finding("ONNX Runtime", "ok", cpu or gpu or "")
    extra = "gpu" if driver.gpus else "cpu"
    return Finding("ONNX Runtime", "absent", "not installed", install_command(extra))


def _cupy(driver: CudaDriver) -> Finding:
    known = ["cupy-cuda13x", "cupy-cuda12x", "cupy-cuda11x", "cupy"]
    there = [text for name in known if (text := installed_version([name]))]
    if not there:
        return Finding("CuPy", "absent", "not installed", install_command("gpu"))
    right = f"cupy-cuda{CUDA_MAJOR}x"
    mend = f"pip uninstall -y {' '.join(t.split()[0] for t in there)} && pip install {right}"
    if len(there) > 1:
        return Finding("CuPy", "problem", f"{' and '.join(there)} overwrite each other", mend)
    if there[0].startswith("cupy-cuda") and not there[0].startswith(right):
        text = f"{there[0]} is not built for CUDA {CUDA_MAJOR}"
        return Finding("CuPy", "problem", text, mend)
    compiler = installed_version(["nvidia-cuda-nvrtc"])
    if compiler and driver.version and _numbers(compiler)[:2] > driver.version:
        newest = ".".join(map(str, driver.version))
        return Finding(
            "CuPy",
            "problem",
            f"{compiler} generates code that a driver for CUDA {newest} cannot load",
            toolkit_command(f"{newest}.*"),
        )
    missing = [name for name, package in _CUDA_LIBRARIES.items() if not _has_cuda(name, package)]
    if missing:
        text = f"{there[0]} without CUDA's {', '.join(missing)}, which it loads on first use"
        return Finding("CuPy", "problem", text, toolkit_command())
    return Finding("CuPy", "ok", there[0])


def _has_cuda(name: str, package: str) -> bool:
    """Return whether a CUDA library is installed as a package, or where CuPy looks for it."""
    if installed_version([package]) or find_library(name):
        return True
    toolkit = os.environ.get("CUDA_PATH") or os.environ.get("CUDA_HOME")
    return toolkit is not None and any(Path(toolkit, "lib64").glob(f"lib{name}.so*"))


def _tensorrt() -> Finding:
    found = _with_libraries("TensorRT", ("tensorrt-cu13", "tensorrt-cu12", "tensorrt"), "tensorrt")
    if found.status != "ok":
        return found
    if "-cu12" in found.value:
        text = f"{found.value} is not built for CUDA {CUDA_MAJOR}"
        name = found.value.split()[0]
        mend = f"pip uninstall -y {name} && {install_command('tensorrt')}"
        return Finding("TensorRT", "problem", text, mend)
    if _numbers(found.value)[0] > 10 and installed_version(["onnxruntime-gpu"]):
        text = f"{found.value}: ONNX Runtime's TensorRT provider links TensorRT 10"
        return Finding("TensorRT", "problem", text, install_command("tensorrt"))
    return found


def _rtx() -> Finding:
    return _with_libraries("TensorRT-RTX", ("tensorrt-rtx-cu13", "tensorrt-rtx"), "rtx")


def _with_libraries(name: str, distributions: Iterable[str], extra: str) -> Finding:
    """Check a package whose bindings and libraries are two more packages of the same version."""
    version = installed_version(distributions)
    if version is None:
        return Finding(name, "absent", "not installed", install_command(extra))
    package, number = version.split()
    if package in ("tensorrt", "tensorrt-rtx"):  # from a tar archive or a system package
        return Finding(name, "ok", version)
    for part in ("libs", "bindings"):
        other = installed_version([f"{package}-{part}"])
        if other is None:
            text = f"{version} without its libraries: {package}-{part} is not installed"
        elif other.split()[1] != number:
            text = f"{version} with {other}"
        else:
            continue
        names = f"{package}=={number} {package}-libs=={number} {package}-bindings=={number}"
        return Finding(name, "problem", text, f"pip install --force-reinstall --no-deps {names}")
    return Finding(name, "ok", version)


def _numbers(text: str) -> tuple[int, ...]:
    """Parse the version in ``name 13.0.88`` as (13, 0, 88)."""
    parts = text.split()[-1].split(".")
    return tuple(int(part) for part in parts if part.isdecimal())

"""What `doctor` finds and says, on machines that are not this one."""

from __future__ import annotations

import ctypes
import json
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dinoreg_kernels import BuildInfo, build_info
from dinoreg_rt import cuda_driver, doctor, machine
from dinoreg_rt.cuda_driver import CudaDriver, Gpu

H100 = Gpu("NVIDIA H100", "9.0", 80 << 30)
WITH_CUDA = BuildInfo("0.1", "generic", cuda_built=True, cuda_devices=1)
WITHOUT_CUDA = BuildInfo("0.1", "generic", cuda_built=False, cuda_devices=0)
NO_DRIVER = CudaDriver(None, (), "no driver")
WITH_GPU = CudaDriver((13, 0), (H100,))


def set_versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(doctor.metadata, "version", version)


def finding(diagnosis: doctor.Diagnosis, name: str) -> doctor.Finding:
    return next(f for f in diagnosis.findings if f.name == name)


def test_examines_this_machine() -> None:
    diagnosis = doctor.examine()
    assert {"processor", "threads", "memory", "CUDA driver"} <= {f.name for f in diagnosis.findings}
    assert set(diagnosis.choices) == {"device", "features"}
    library = finding(diagnosis, "kernel library")
    assert library.status == "ok"
    assert library.value.startswith(f"version {build_info().version}, {build_info().isa} ")
    json.dumps(asdict(diagnosis))


def test_both_onnxruntimes_are_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch, onnxruntime="1.24.0", onnxruntime_gpu="1.24.0")
    found = finding(doctor.examine(), "ONNX Runtime")
    assert found.status == "problem"
    assert "overwrite each other" in found.value
    assert found.remedy.startswith("pip uninstall -y onnxruntime onnxruntime-gpu")


def test_missing_packages_come_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch)
    monkeypatch.setattr(
        doctor.metadata,
        "requires",
        lambda _: ["numpy>=1.26", "openvino>=2026.0; extra == 'openvino'"],
    )
    found = finding(doctor.examine(), "OpenVINO")
    assert (found.status, found.remedy) == ("absent", "pip install 'openvino>=2026.0'")


@pytest.mark.parametrize(
    ("driver", "library", "expected"),
    [
        (NO_DRIVER, WITH_CUDA, "cpu, because no CUDA device"),
        (WITH_GPU, WITHOUT_CUDA, "cpu, because the kernel library was built without CUDA"),
        (WITH_GPU, None, "cpu, because the kernel library was built without CUDA"),
        (WITH_GPU, WITH_CUDA, "cuda:0, because NVIDIA H100"),
    ],
)
def test_choice_of_device(driver: CudaDriver, library: BuildInfo | None, expected: str) -> None:
    assert doctor.choose(driver, library)["device"].startswith(expected)


def test_library_that_cannot_be_loaded_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "kernel_library", lambda: None)
    assert finding(doctor.examine(), "kernel library").status == "problem"


def test_finds_encoders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vits16").mkdir()
    (tmp_path / "vits16" / "manifest.json").write_text("{}")
    (tmp_path / "unrelated").mkdir()
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path))
    diagnosis = doctor.examine()
    assert finding(diagnosis, "encoders").value == f"vits16 in {tmp_path}"
    assert diagnosis.choices["features"] == "mind, because no encoder was given"


class FakeDriver:
    """libcuda with two devices; `init` is what cuInit returns."""

    def __init__(self, *, init: int = 0, count: int = 2) -> None:
        self.init, self.count = init, count

    def cuDriverGetVersion(self, out: Any) -> int:
        out._obj.value = 13020
        return 0

    def cuInit(self, _: int) -> int:
        return self.init

    def cuDeviceGetCount(self, out: Any) -> int:
        out._obj.value = self.count
        return 0

    def cuDeviceGet(self, out: Any, ordinal: int) -> int:
        out._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, buffer: Any, _: int, device: Any) -> int:
        buffer.value = f"GPU model {device.value}".encode()
        return 0

    def cuDeviceTotalMem_v2(self, out: Any, _: Any) -> int:
        out._obj.value = 8 << 30
        return 0

    def cuDeviceGetAttribute(self, out: Any, attribute: int, _: Any) -> int:
        out._obj.value = {75: 8, 76: 6}[attribute]
        return 0

    def cuGetErrorName(self, _: int, out: Any) -> int:
        out._obj.value = b"CUDA_ERROR_UNKNOWN"
        return 0


def test_driver_with_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: FakeDriver())
    driver = cuda_driver.query_cuda_driver()
    assert driver.version == (13, 2)
    assert [gpu.describe() for gpu in driver.gpus] == [
        f"GPU model {i}, compute capability 8.6, 8 GiB" for i in range(2)
    ]


@pytest.mark.parametrize(
    ("fake", "problem"),
    [
        (FakeDriver(init=999), "cuInit says CUDA_ERROR_UNKNOWN"),
        (FakeDriver(count=0), "it lists no device"),
    ],
)
def test_driver_without_devices(
    monkeypatch: pytest.MonkeyPatch, fake: FakeDriver, problem: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: fake)
    driver = cuda_driver.query_cuda_driver()
    assert (driver.gpus, driver.problem) == ((), problem)


def test_no_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(_: str) -> None:
        raise OSError("no such file")

    monkeypatch.setattr(ctypes, "CDLL", missing)
    assert cuda_driver.query_cuda_driver().version is None


def test_container_quota_limits_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda _: set(range(8)))
    monkeypatch.setattr(machine, "_cgroup_cpus", lambda: 2.5)
    assert machine.usable_cpus() == (2, "the container's quota of 2.5 CPUs")


def test_container_limit_caps_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    numbers = {"/sys/fs/cgroup/memory.max": 4 << 30, "/sys/fs/cgroup/memory.current": 1 << 30}
    monkeypatch.setattr(machine, "_read_number", lambda *files: numbers.get(str(files[0])))
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: SimpleNamespace(total=64 << 30, available=60 << 30)
    )
    assert machine.memory_bytes() == (4 << 30, 3 << 30)

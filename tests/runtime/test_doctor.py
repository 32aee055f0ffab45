"""The findings of `doctor` on simulated machines."""

from __future__ import annotations

import ctypes
import json
import re
import sys
import tomllib
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import CliRunner
from cuda_on_host import cupy_on_host

from dinoreg_kernels import CudaDevices, build_info
from dinoreg_rt.commands import doctor
from dinoreg_rt.device import cuda_driver
from dinoreg_rt.device import limits as machine
from dinoreg_rt.device import packages as doctor_packages
from dinoreg_rt.device.choice import Device, choose_device
from dinoreg_rt.device.cuda_driver import CudaDriver, Gpu
from dinoreg_rt.errors import DeviceError

H100 = Gpu("NVIDIA H100", "9.0", 80 << 30)
WITH_CUDA = CudaDevices(1, "")
WITHOUT_CUDA = CudaDevices(0, "built without CUDA (the package has it)")
OLD_DRIVER = CudaDevices(0, "the driver is too old (CUDA error 35)")
NO_DRIVER = CudaDriver(None, (), "no driver")
WITH_GPU = CudaDriver((13, 0), (H100,))


def set_versions(monkeypatch: pytest.MonkeyPatch, **installed: str) -> None:
    def version(name: str) -> str:
        try:
            return installed[name.replace("-", "_")]
        except KeyError:
            raise metadata.PackageNotFoundError(name) from None

    monkeypatch.setattr(metadata, "version", version)


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


CU13 = {
    "cupy_cuda13x": "14.2.0",
    "onnxruntime_gpu": "1.31.1",
    "nvidia_cudnn_cu13": "9.14.0",
    "nvidia_cuda_nvrtc": "13.0.88",
    "nvidia_cuda_runtime": "13.0.96",
    "nvidia_cublas": "13.1.1.3",
    "nvidia_cusolver": "12.0.4.66",
    "nvidia_cusparse": "12.6.3.3",
}
TENSORRT = {f"tensorrt_cu13{part}": "10.13.2.6" for part in ("", "_libs", "_bindings")}
RTX = {f"tensorrt_rtx_cu13{part}": "1.7.1.116" for part in ("", "_libs", "_bindings")}


@pytest.mark.parametrize(
    ("driver", "installed", "name", "value", "remedy"),
    [
        (
            NO_DRIVER,
            {"dinoreg_rt": "2.0", "dinoreg_kernels_cu13": "1.0"},
            "CUDA kernels",
            "dinoreg-kernels-cu13 1.0 beside dinoreg-rt 2.0",
            "pip install 'dinoreg-kernels-cu13==2.0'",
        ),
        (NO_DRIVER, CU13, "CUDA driver", "but cupy-cuda13x 14.2.0 is inst", "driver 580 or newer"),
        (CudaDriver((12, 8), (H100,)), CU13, "CUDA driver", "CUDA 12.8 is too old", "driver 580"),
        (CudaDriver((13, 0), (), "none"), {}, "CUDA driver", "no device", "--gpus all"),
        (
            WITH_GPU,
            {"cupy_cuda12x": "14.2"},
            "CuPy",
            "built for CUDA 13",
            "uninstall -y cupy-cuda12x",
        ),
        (WITH_GPU, CU13 | {"cupy_cuda12x": "14"}, "CuPy", "overwrite each", "install cupy-cuda13x"),
        (
            WITH_GPU,
            CU13 | {"nvidia_cuda_nvrtc": "13.5.1"},
            "CuPy",
            "a driver for CUDA 13.0 cannot load",
            "pip install 'cuda-toolkit[cublas,cusolver,nvrtc]==13.0.*'",
        ),
        (
            WITH_GPU,
            {name: version for name, version in CU13.items() if name != "nvidia_cusparse"},
            "CuPy",
            "cupy-cuda13x 14.2.0 without CUDA's cusparse, which",
            "pip install 'cuda-toolkit[cublas,cusolver,nvrtc]==13.9.*'",
        ),
        (WITH_GPU, {"onnxruntime_gpu": "1.31"}, "ONNX Runtime", "without cuDNN", "cudnn-cu13>=9"),
        (
            WITH_GPU,
            {"tensorrt_cu13": "10.13.2.6"},
            "TensorRT",
            "tensorrt-cu13-libs is not installed",
            "--no-deps tensorrt-cu13==10.13.2.6 tensorrt-cu13-libs==10.13.2.6",
        ),
        (
            WITH_GPU,
            TENSORRT | {"tensorrt_cu13_bindings": "10.14.1"},
            "TensorRT",
            "10.13.2.6 with tensorrt-cu13-bindings 10.14.1",
            "--force-reinstall",
        ),
        (
            WITH_GPU,
            CU13 | dict.fromkeys(TENSORRT, "11.0.0.1"),
            "TensorRT",
            "provider links TensorRT 10",
            "pip install",
        ),
        (
            WITH_GPU,
            {n.replace("13", "12"): v for n, v in TENSORRT.items()},
            "TensorRT",
            "built for CUDA 13",
            "pip uninstall -y tensorrt-cu12",
        ),
        (
            WITH_GPU,
            {"tensorrt_rtx_cu13": "1.7.1.116", "tensorrt_rtx_cu13_libs": "1.7.1.116"},
            "TensorRT-RTX",
            "tensorrt-rtx-cu13-bindings is not installed",
            "tensorrt-rtx-cu13-bindings==1.7.1.116",
        ),
    ],
)
def test_broken_combinations(
    monkeypatch: pytest.MonkeyPatch,
    driver: CudaDriver,
    installed: dict[str, str],
    name: str,
    value: str,
    remedy: str,
) -> None:
    set_versions(monkeypatch, **installed)
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda _: ["cuda-toolkit[cublas,cusolver,nvrtc]==13.9.*; extra == 'gpu'"],
    )
    monkeypatch.setattr(doctor, "query_cuda_driver", lambda: driver)
    monkeypatch.setattr(doctor_packages, "find_library", lambda _: None)
    for variable in ("CUDA_PATH", "CUDA_HOME"):
        monkeypatch.delenv(variable, raising=False)
    found = finding(doctor.examine(), name)
    assert found.status == "problem"
    assert value in found.value
    assert remedy in found.remedy


def test_a_gpu_server_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch, **CU13, **TENSORRT, **RTX)
    monkeypatch.setattr(doctor, "query_cuda_driver", lambda: WITH_GPU)
    names = ("CUDA driver", "ONNX Runtime", "CuPy", "TensorRT", "TensorRT-RTX")
    assert {finding(doctor.examine(), name).status for name in names} == {"ok"}


def test_a_machine_without_a_gpu_has_no_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch, onnxruntime="1.32.0")
    monkeypatch.setattr(doctor, "query_cuda_driver", lambda: NO_DRIVER)
    assert not [f for f in doctor.examine().findings if f.status == "problem"]


def test_cuda_libraries_of_the_system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    set_versions(monkeypatch, cupy_cuda13x="14.2.0")
    monkeypatch.setattr(doctor, "query_cuda_driver", lambda: WITH_GPU)
    monkeypatch.setattr(doctor_packages, "find_library", lambda _: None)
    monkeypatch.setenv("CUDA_PATH", str(tmp_path))
    (tmp_path / "lib64").mkdir()
    for name in ("nvrtc", "cudart", "cublas", "cusolver"):
        (tmp_path / "lib64" / f"lib{name}.so.13").touch()
    assert "without CUDA's cusparse, which" in finding(doctor.examine(), "CuPy").value
    monkeypatch.setattr(doctor_packages, "find_library", lambda name: name)
    assert finding(doctor.examine(), "CuPy").status == "ok"


def test_packages_of_the_gpu_replace_the_cpus_onnxruntime(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = ["onnxruntime-gpu>=1.24; extra == 'gpu'", "cupy-cuda13x>=14.2; extra == 'gpu'"]
    monkeypatch.setattr(metadata, "requires", lambda _: wanted)
    set_versions(monkeypatch)
    packages = "pip install 'onnxruntime-gpu>=1.24' 'cupy-cuda13x>=14.2'"
    assert doctor_packages.install_command("gpu") == packages
    set_versions(monkeypatch, onnxruntime="1.32.0")
    replaced = f"pip uninstall -y onnxruntime && {packages}"
    assert finding(doctor.examine(), "CuPy").remedy == replaced


def test_the_extra_gpu_installs_every_library_that_is_checked() -> None:
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8")
    parts = re.search(r"cuda-toolkit\[(.*?)\]", text)
    assert parts is not None
    assert set(doctor_packages._CUDA_LIBRARIES) <= set(parts[1].split(","))
    development = tomllib.loads(text)["project"]["optional-dependencies"]["dev"]
    assert not [r for r in development if r.startswith("onnxruntime")]  # of `cpu` or `gpu` only


def test_missing_packages_are_listed_with_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    set_versions(monkeypatch)
    monkeypatch.setattr(
        metadata,
        "requires",
        lambda _: ["numpy>=1.26", "openvino>=2026.0; extra == 'openvino'"],
    )
    found = finding(doctor.examine(), "OpenVINO")
    assert (found.status, found.remedy) == ("absent", "pip install 'openvino>=2026.0'")


@pytest.mark.parametrize(
    ("driver", "devices", "expected"),
    [
        (NO_DRIVER, WITH_CUDA, "cpu, because no CUDA device"),
        (WITH_GPU, WITHOUT_CUDA, "cpu, because built without CUDA (the package has it)"),
        (WITH_GPU, OLD_DRIVER, "cpu, because the driver is too old (CUDA error 35)"),
        (WITH_GPU, None, "cpu, because the kernel library cannot be loaded"),
        (WITH_GPU, WITH_CUDA, "cuda:0, because NVIDIA H100"),
    ],
)
def test_choice_of_device(driver: CudaDriver, devices: CudaDevices | None, expected: str) -> None:
    assert doctor.choose(driver, devices)["device"].startswith(expected)


def test_cuda_kernels_that_a_gpu_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    library = replace(build_info(), cuda_built=False)
    monkeypatch.setattr(doctor, "kernel_library", lambda: (library, WITHOUT_CUDA))
    monkeypatch.setattr(doctor, "query_cuda_driver", lambda: WITH_GPU)
    found = finding(doctor.examine(), "CUDA kernels")
    assert (found.status, found.value) == ("problem", WITHOUT_CUDA.problem)
    assert found.remedy.startswith("pip install 'dinoreg-kernels-cu13==")
    assert "pip install ./packaging/dinoreg-kernels-cu13" in found.remedy
    monkeypatch.setattr(doctor, "query_cuda_driver", lambda: NO_DRIVER)
    assert finding(doctor.examine(), "CUDA kernels").status == "absent"
    built = replace(library, cuda_built=True)
    monkeypatch.setattr(doctor, "kernel_library", lambda: (built, WITH_CUDA))
    assert finding(doctor.examine(), "CUDA kernels").status == "ok"
    other = CudaDevices(1, "no kernel image")
    monkeypatch.setattr(doctor, "kernel_library", lambda: (built, other))
    monkeypatch.setattr(doctor, "query_cuda_driver", lambda: WITH_GPU)
    found = finding(doctor.examine(), "CUDA kernels")
    assert (found.status, found.value) == ("problem", "no kernel image")
    assert found.remedy.startswith("build the kernels on this machine")


def test_required_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the health checks of the images ask for."""
    from dinoreg_rt.commands.main import cli

    def exit_code(*arguments: str) -> int:
        return CliRunner().invoke(cli, ["doctor", "--json", *arguments]).exit_code

    assert exit_code("--require", "cpu") == 0
    monkeypatch.setattr("dinoreg_kernels.cuda_devices", lambda: WITHOUT_CUDA)
    missing = CliRunner().invoke(cli, ["doctor", "--json", "--require", "cuda:0"])
    assert missing.exit_code == DeviceError.exit_code
    assert "cuda:0 cannot be used: built without CUDA" in missing.stderr
    monkeypatch.setitem(sys.modules, "cupy", cupy_on_host())
    monkeypatch.setattr("dinoreg_kernels.cuda_devices", lambda: WITH_CUDA)
    monkeypatch.setattr("dinoreg_kernels.current_device_problem", lambda: "")
    assert exit_code("--require", "cuda:0") == 0
    assert exit_code("--require", "cuda:1") != 0
    assert exit_code("--require", "gpu") == 2
    # A library for another GPU is not chosen, and not taken for one that was asked for.
    monkeypatch.setattr("dinoreg_kernels.current_device_problem", lambda: "no kernel image")
    assert exit_code("--require", "cuda:0") == DeviceError.exit_code
    assert choose_device("auto", 1) == (Device("cpu", threads=1), "cpu, because no kernel image")
    with pytest.raises(DeviceError, match="--device cuda: no kernel image"):
        choose_device("cuda", 1)
    assert doctor.kernel_library()[1] == CudaDevices(1, "no kernel image")


def test_library_that_cannot_be_loaded_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "kernel_library", lambda: (None, None))
    assert finding(doctor.examine(), "kernel library").status == "problem"


def test_finds_encoders(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "vits16").mkdir()
    (tmp_path / "vits16" / "manifest.json").write_text("{}")
    (tmp_path / "unrelated").mkdir()
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path))
    diagnosis = doctor.examine()
    assert finding(diagnosis, "encoders").value == f"vits16 in {tmp_path}"
    assert diagnosis.choices["features"] == "mind, because no encoder was given"


def test_names_of_encoders_are_not_markup(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from dinoreg_rt.commands.main import cli

    (tmp_path / "[bold]x").mkdir()
    (tmp_path / "[bold]x" / "manifest.json").write_text("{}")
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path))
    assert "[bold]x in " in CliRunner().invoke(cli, ["doctor"]).stdout.replace("\n", " ")


def test_a_folder_of_models_that_cannot_be_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path / ("x" * 300)))
    found = finding(doctor.examine(), "encoders")
    assert found.status == "problem"
    assert "File name too long" in found.value
    assert found.remedy == "DINOREG_MODELS names another one"


def test_no_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("DINOREG_MODELS", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    found = finding(doctor.examine(), "encoders")
    assert found.status == "problem"
    assert found.remedy == "set HOME, or DINOREG_MODELS to a folder"


class FakeDriver:
    """A libcuda with `count` devices, whose cuInit returns `init`."""

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
        (FakeDriver(init=999), "cuInit returned CUDA_ERROR_UNKNOWN"),
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


def test_strict_is_a_health_check(monkeypatch: pytest.MonkeyPatch) -> None:
    from dinoreg_rt.commands import doctor as command

    def run(*words: str) -> Any:
        return CliRunner().invoke(command.doctor, words)

    broken = doctor.Diagnosis([doctor.Finding("CuPy", "problem", "text", "mend it")], {})
    monkeypatch.setattr(command, "examine", lambda: broken)
    assert run("--json").exit_code == 0
    done = run("--strict", "--json")
    assert isinstance(done.exception, DeviceError)
    assert "broken: CuPy" in str(done.exception)
    sound = doctor.Diagnosis([doctor.Finding("CuPy", "absent", "text", "")], {})
    monkeypatch.setattr(command, "examine", lambda: sound)
    assert run("--strict").exit_code == 0


@pytest.mark.parametrize("status", ["absent", "problem"])
def test_commands_to_paste_are_one_line(monkeypatch: pytest.MonkeyPatch, status: str) -> None:
    from dinoreg_rt.commands.main import cli

    remedy = "pip install " + " ".join(f"'package-{i}==1.0.*'" for i in range(12))
    found = doctor.Finding("CuPy", status, "as it is", remedy)
    monkeypatch.setattr(doctor, "package_findings", lambda _: [found])
    lines = CliRunner().invoke(cli, ["doctor"], terminal_width=80).stdout.splitlines()
    assert f"  CuPy: {remedy}" in lines

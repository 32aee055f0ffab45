"""`dinoreg-rt doctor`."""

from __future__ import annotations

import json
import os
import platform
import re
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import rich_click as click

from ..bundle.opened import bundle_names, models_folder
from ..console.stdout import print_result
from ..device.choice import require_device
from ..device.cuda_driver import CudaDriver, query_cuda_driver
from ..device.limits import memory_bytes, usable_cpus
from ..device.packages import Finding, cuda_kernels, driver_finding, package_findings
from ..errors import DeviceError, InputError

if TYPE_CHECKING:
    from dinoreg_kernels import BuildInfo, CudaDevices


_REINSTALL = "pip install --force-reinstall --no-deps ."


@dataclass(frozen=True)
class Diagnosis:
    """All findings, and what ``auto`` would choose, with reasons."""

    findings: list[Finding]
    choices: dict[str, str]
    details: dict[str, Any] = field(default_factory=dict)


def examine() -> Diagnosis:
    """Examine this machine, in well under a second and without changing anything."""
    library, devices = kernel_library()
    driver = query_cuda_driver()
    findings = [
        _processor(),
        _threads(),
        _memory(),
        _library_finding(library),
        *_cuda_findings(driver, library, devices),
        *package_findings(driver),
        _encoders(),
    ]
    details = {
        "kernel_library": asdict(library) if library else {},
        "gpus": [vars(gpu) for gpu in driver.gpus],
    }
    return Diagnosis(findings, choose(driver, devices), details)


def choose(driver: CudaDriver, devices: CudaDevices | None) -> dict[str, str]:
    """Return what ``auto`` means for the device and the features on this machine, and why."""
    if not driver.gpus:
        device = "cpu, because no CUDA device can be used"
    elif devices is None:
        device = "cpu, because the kernel library cannot be loaded"
    elif devices.problem:
        device = f"cpu, because {devices.problem}"
    else:
        device = f"cuda:0, because {driver.gpus[0].name} can be used with the CUDA kernels"
    try:
        found = bundle_names(models_folder())
    except InputError:
        found = []  # `_encoders` reports the reason
    reason = "no encoder was given" if found else "no encoder is installed, and MIND needs none"
    return {"device": device, "features": f"mind, because {reason}"}


def kernel_library() -> tuple[BuildInfo, CudaDevices] | tuple[None, None]:
    """Return the compiled library's description of itself and its devices, or None twice.

    The devices' problem is also that the first one cannot run the kernels.
    """
    from dinoreg_kernels import KernelError, build_info, cuda_devices, current_device_problem

    try:
        return build_info(), replace(cuda_devices(), problem=current_device_problem())
    except KernelError:
        return None, None


def _processor() -> Finding:
    model, flags = platform.processor() or platform.machine(), set[str]()
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                model = value.strip()
            elif key.strip() in ("flags", "Features"):
                flags = set(value.split())
                break
    except OSError:
        pass  # not on Linux: only the name is known
    units = (
        [
            name
            for flag, name in (("avx2", "AVX2"), ("fma", "FMA"), ("avx512f", "AVX-512"))
            if flag in flags
        ]
        + ["AMX"] * ("amx_tile" in flags)
        + ["NEON"] * ("asimd" in flags)
    )
    return Finding("processor", "ok", f"{model} ({', '.join(units) or 'no vector units known'})")


def _threads() -> Finding:
    count, limit = usable_cpus()
    return Finding("threads", "ok", f"{count} of {os.cpu_count()} CPUs ({limit})")


def _memory() -> Finding:
    total, free = memory_bytes()
    return Finding("memory", "ok", f"{free / 2**30:.1f} of {total / 2**30:.1f} GiB free")


def _library_finding(library: BuildInfo | None) -> Finding:
    if library is None:
        return Finding(
            "kernel library",
            "problem",
            "cannot be loaded",
            "see CUDA kernels"
            if cuda_kernels().status == "problem"
            else f"in the source folder: {_REINSTALL}",
        )
    cuda = "with" if library.cuda_built else "without"
    text = f"version {library.version}, {library.isa} instructions, {cuda} CUDA kernels"
    return Finding("kernel library", "ok", text)


def _cuda_findings(
    driver: CudaDriver, library: BuildInfo | None, devices: CudaDevices | None
) -> list[Finding]:
    found = [driver_finding(driver)]
    found += [Finding(f"GPU {i}", "ok", gpu.describe()) for i, gpu in enumerate(driver.gpus)]
    return [*found, _cuda_kernels(driver, library, devices)]


def _cuda_kernels(
    driver: CudaDriver, library: BuildInfo | None, devices: CudaDevices | None
) -> Finding:
    package = cuda_kernels()
    if package.status == "problem" or library is None or devices is None:
        return package
    if driver.gpus and devices.problem:
        remedy = "check the driver's version, its services and CUDA_VISIBLE_DEVICES"
        if not library.cuda_built:
            remedy = package.remedy
        elif devices.count:
            remedy = "build the kernels on this machine, for its GPU (Building in docs/gpu.md)"
        return replace(package, status="problem", value=devices.problem, remedy=remedy)
    if library.cuda_built and package.status == "absent":
        return replace(package, status="ok", value="part of the kernel library")
    return package


def _encoders() -> Finding:
    try:
        folder = models_folder()
        names = bundle_names(folder)
    except InputError as error:
        what, _, remedy = str(error).rpartition("; ")
        return Finding("encoders", "problem", what, remedy)
    if names:
        return Finding("encoders", "ok", f"{', '.join(names)} in {folder}")
    return Finding("encoders", "absent", f"none in {folder}")


_MARKS = {"ok": ("✓", "green"), "absent": ("-", "dim"), "problem": ("✗", "bold red")}


def _a_device(_: click.Context, __: click.Parameter, value: str | None) -> str | None:
    if value is not None and not re.fullmatch(r"cpu|cuda(:\d+)?", value):
        raise click.BadParameter(f"got {value}; wanted cpu, cuda or cuda:N")
    return value


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON on stdout.")
@click.option("--strict", is_flag=True, help="Exit with 5 if anything is broken (health check).")
@click.option(
    "--require",
    metavar="DEVICE",
    callback=_a_device,
    help="Exit with 5 unless this device can be used: cpu or cuda:N (health check).",
)
def doctor(*, as_json: bool, strict: bool, require: str | None) -> None:
    """Show this machine's devices and libraries, and what 'auto' would choose and why.

    What is broken or missing is shown with the command that repairs or installs it; nothing is
    changed. The exit code is 0 even if something is broken, unless --strict or --require is given.
    """
    diagnosis = examine()
    if as_json:
        print_result(json.dumps(asdict(diagnosis), indent=2) + "\n")
    else:
        _print(diagnosis)
    broken = [f.name for f in diagnosis.findings if f.status == "problem"]
    if strict and broken:
        raise DeviceError(f"broken: {', '.join(broken)}; the lines above show how to repair them")
    if require:
        require_device(require)


def _print(diagnosis: Diagnosis) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console(highlight=False)
    table = Table(box=None, padding=(0, 1), show_header=False)
    table.add_column(width=1)
    table.add_column(no_wrap=True, style="bold")
    table.add_column(overflow="fold")
    for finding in diagnosis.findings:
        mark, style = _MARKS[finding.status]
        # As Text, because names of folders may look like markup.
        table.add_row(Text(mark, style), Text(finding.name), Text(finding.value))
    console.print(table)
    console.print("\nWhat [bold]auto[/bold] would choose:")
    for name, choice in diagnosis.choices.items():
        console.print(Text.assemble("  ", (f"{name}: ", "bold"), choice), soft_wrap=True)
    for heading, status in (
        ("repair what is broken", "problem"),
        ("add what is missing", "absent"),
    ):
        hints = [f for f in diagnosis.findings if f.remedy and f.status == status]
        if hints:
            console.print(f"\nTo {heading}:")
        for finding in hints:
            line = Text.assemble("  ", (f"{finding.name}: ", "bold"), finding.remedy)
            console.print(line, soft_wrap=True)  # a command to paste stays one line

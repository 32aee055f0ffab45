"""The lock files hold what pyproject.toml asks for; packaging/lock.sh makes them."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
#: With the extras in lock.sh. The CUDA kernels come from this tree.
LOCKED = {
    "lock-cpu.txt": ["dev", "cpu", "export", "openvino", "rtx", "oracle"],
    "lock-gpu.txt": ["gpu", "export"],
}


@pytest.mark.parametrize("name", LOCKED)
def test_lock_satisfies_the_project(name):
    lines = (ROOT / "packaging" / name).read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    wanted = PROJECT["dependencies"] + [r for extra in LOCKED[name] for r in EXTRAS[extra]]
    for requirement in map(Requirement, wanted):
        if requirement.name == "dinoreg-kernels-cu13":
            continue
        versions = [
            next(iter(pin.specifier)).version
            for pin in pins
            if canonicalize_name(pin.name) == canonicalize_name(requirement.name)
        ]
        assert versions, f"{requirement.name} is not in {name}; run packaging/lock.sh"
        for version in versions:
            assert requirement.specifier.contains(version), f"{requirement} in {name}: {version}"


def test_lock_files_have_the_extras_of_their_script():
    script = (ROOT / "packaging" / "lock.sh").read_text("utf-8").replace("\\\n", " ")
    for name, extras in LOCKED.items():
        (line,) = re.findall(rf"^lock {name}(.*)$", script, re.MULTILINE)
        assert line.split() == [word for extra in extras for word in ("--extra", extra)]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_images_run_the_steps_of_the_script(name):
    """The images themselves cannot be built here; .ci/run runs the CPU's steps."""
    text = (ROOT / "docker" / name).read_text("utf-8")
    kind, device = ("cpu", "cpu") if name.endswith("cpu") else ("gpu", "cuda:0")
    assert f"RUN /source/docker/install.sh /opt/dinoreg {kind}\n" in text
    assert f'"--require", "{device}"' in text
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    for needed in ("pyproject.toml", "docker/install.sh", "packaging", "kernels"):
        assert f"!{needed}" in ignored

"""Who may import whom (CONTRIBUTING.md), read from the sources and tried in a fresh interpreter."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = {
    "dinoreg_rt": ROOT / "runtime" / "dinoreg_rt",
    "dinoreg_kernels": ROOT / "kernels" / "dinoreg_kernels",
    "dinoreg_export": ROOT / "export" / "dinoreg_export",
}
#: A program for the environment of another package, which brings its own torch; never imported.
FOREIGN = "convexadam_child"
NEVER = {"torch", "torchvision", "scipy", "monai"}
#: Only inside functions: they are optional or slow to import.
LAZY = {"cupy", "tensorrt", "tensorrt_rtx", "pycuda", "onnxruntime", "openvino", "ray"}
LAZY |= {"matplotlib"}
BLOCKED = ("torch", "transformers", "timm", "cupy", "pycuda", "onnxruntime")
BLOCKED += ("tensorrt", "tensorrt_rtx")
#: The folders of `dinoreg_rt`, lowest first: each imports from those before it alone.
LAYERS = (
    *("errors", "choices", "types", "summaries", "geometry"),
    *("config", "console", "io", "device", "images", "features", "fields", "quality", "align"),
    *("bundle", "engines.trt", "engines", "encoder", "registration"),
    *("page", "run", "evaluate", "bench", "sweep", "cohort", "embedded"),
    *("commands", "__init__", "__main__"),
)
#: Methods that lead users of Python to a higher layer, which they import when they are called.
SHORTCUTS = {"dinoreg_rt.types": {"dinoreg_rt.io"}}
#: What `dinoreg_export` may take: what both sides read and write, and no stage.
SHARED_WITH_EXPORT = (
    *("dinoreg_rt.errors", "dinoreg_rt.bundle.manifest", "dinoreg_rt.engines.trt"),
    *("dinoreg_rt.engines.onnx_runtime", "dinoreg_rt.encoder.examples"),
    *("dinoreg_rt.console.stdout", "dinoreg_rt.io.hidden", "dinoreg_rt.io.staging"),
    "dinoreg_rt.config.files",
)


def sources(package: str) -> list[Path]:
    return sorted(p for p in PACKAGES[package].rglob("*.py") if p.stem != FOREIGN)


ALL = [pytest.param(p, id=str(p.relative_to(ROOT))) for name in PACKAGES for p in sources(name)]


def module_name(path: Path) -> tuple[str, ...]:
    package = next(name for name, folder in PACKAGES.items() if path.is_relative_to(folder))
    return (package, *path.relative_to(PACKAGES[package]).with_suffix("").parts)


def imports(
    tree: ast.Module, path: Path, *, at_load_only: bool = False, for_types: bool = False
) -> Iterator[str]:
    """Full dotted names of what a module imports, for type checking only where asked for."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = module_name(path)[: -node.level] if node.level else ()
            prefix = ".".join([*base, *([node.module] if node.module else [])])
            yield prefix
            yield from (f"{prefix}.{alias.name}" for alias in node.names)
        elif not for_types and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            pending += node.orelse
            continue
        elif at_load_only and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        pending += ast.iter_child_nodes(node)


def imported(path: Path, *, at_load_only: bool = False, for_types: bool = False) -> set[str]:
    tree = ast.parse(path.read_text("utf-8"))
    return set(imports(tree, path, at_load_only=at_load_only, for_types=for_types))


def top_levels(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


@pytest.mark.parametrize("path", ALL)
def test_nothing_imports_torch_or_test_dependencies(path: Path) -> None:
    assert not top_levels(imported(path)) & NEVER


@pytest.mark.parametrize("path", ALL)
def test_heavy_libraries_are_imported_where_they_are_used(path: Path) -> None:
    assert not top_levels(imported(path, at_load_only=True)) & LAZY


@pytest.mark.parametrize("path", ALL)
def test_foreign_programs_are_not_imported(path: Path) -> None:
    assert not {n for n in imported(path) if FOREIGN in n}


def layer(module: str) -> str:
    """The entry of `LAYERS` that a module of `dinoreg_rt` belongs to."""
    inner = module.removeprefix("dinoreg_rt").removeprefix(".") or "__init__"
    return next(
        name for name in ("engines.trt", *LAYERS) if inner == name or inner.startswith(f"{name}.")
    )


@pytest.mark.parametrize("path", [p for p in ALL if "dinoreg_rt" in str(p.id)])
def test_a_layer_imports_from_lower_layers_alone(path: Path) -> None:
    own = ".".join(module_name(path))
    height = LAYERS.index(layer(own))
    ours = {n for n in imported(path) if n.startswith("dinoreg_rt.")}
    upwards = {n for n in ours if LAYERS.index(layer(n)) > height}
    allowed = SHORTCUTS.get(own, set()) - imported(path, at_load_only=True)
    upwards = {n for n in upwards if n not in allowed and n.rpartition(".")[0] not in allowed}
    assert not upwards, f"{own} imports {sorted(upwards)}"


def test_no_module_imports_itself_through_others() -> None:
    """Imports inside functions and for type checking count, too; a package's own names do not."""
    paths = {".".join(module_name(p)): p for package in PACKAGES for p in sources(package)}
    modules = {name: path for name, path in paths.items() if not name.endswith("__init__")}
    graph = {
        name: imported(path, for_types=True) & modules.keys() - {name}
        for name, path in modules.items()
    }
    while leaves := {name for name, found in graph.items() if not found & graph.keys()}:
        graph = {name: found for name, found in graph.items() if name not in leaves}
    assert not graph, f"a circle of imports is among, or below: {sorted(graph)}"


def test_no_module_repeats_the_name_of_its_folder() -> None:
    for package in PACKAGES:
        for path in sources(package):
            assert path.stem != path.parent.name, path


def test_few_modules_lie_outside_the_folders() -> None:
    assert len(list(PACKAGES["dinoreg_rt"].glob("*.py"))) <= 12


def test_kernels_import_nothing_else_of_ours() -> None:
    for path in sources("dinoreg_kernels"):
        assert not top_levels(imported(path)) & {"dinoreg_rt", "dinoreg_export"}, path


def test_runtime_does_not_import_export() -> None:
    for path in sources("dinoreg_rt"):
        assert "dinoreg_export" not in top_levels(imported(path)), path


def test_export_takes_only_what_it_shares_with_the_runtime() -> None:
    for path in sources("dinoreg_export"):
        ours = {n for n in imported(path) if n.startswith("dinoreg_rt.")}
        packages = {name.rpartition(".")[0] for name in SHARED_WITH_EXPORT}
        unshared = {n for n in ours if not n.startswith(SHARED_WITH_EXPORT)} - packages
        assert not unshared, path


@pytest.mark.parametrize("module", ["dinoreg_rt", "dinoreg_rt.commands.main"])
def test_imports_without_gpu_and_torch_libraries(module: str) -> None:
    code = (
        "import sys\n"
        f"for name in {BLOCKED!r}: sys.modules[name] = None\n"
        f"sys.path[:0] = {[str(folder.parent) for folder in PACKAGES.values()]!r}\n"
        f"import {module}\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_whole_run_with_an_encoder_without_torch(tmp_path: Path) -> None:
    for package in ("onnx", "onnxruntime"):
        pytest.importorskip(package, reason=f"makes or runs an encoder: {package} is not installed")
    code = (
        "import sys\n"
        "for name in ('torch', 'transformers', 'timm'): sys.modules[name] = None\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from pathlib import Path\n"
        "from encoders import write_bundle\n"
        "from phantoms import make_grid, make_phantom\n"
        "import dinoreg_rt\n"
        f"folder = write_bundle(Path({str(tmp_path / 'gabor')!r}), [(48, 56)])\n"
        "grid = make_grid((16, 20, 24), (4.0, 4.0, 4.0))\n"
        "pair = make_phantom(grid, grid)\n"
        "config = dinoreg_rt.RegistrationConfig(encoder=str(folder), cache=False, threads=1)\n"
        "result = dinoreg_rt.register(pair.fixed, pair.moving, config=config)\n"
        "assert result.encoding.model == 'gabor-bank'\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()


def test_a_run_on_the_cpu_does_not_reach_for_cuda() -> None:
    """Of a library with CUDA, too; the driver would be opened, and its devices woken up."""
    code = (
        "import sys\n"
        f"sys.path.insert(0, {str(ROOT / 'tests')!r})\n"
        "from phantoms import make_grid, make_phantom\n"
        "import dinoreg_rt\n"
        "grid = make_grid((16, 20, 24), (4.0, 4.0, 4.0))\n"
        "pair = make_phantom(grid, grid)\n"
        "config = dinoreg_rt.RegistrationConfig(device='cpu', threads=1)\n"
        "dinoreg_rt.register(pair.fixed, pair.moving, config=config)\n"
    )
    # glibc tells what is opened; another C library says nothing.
    environment = os.environ | {"LD_DEBUG": "files"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=False, env=environment
    )
    assert done.returncode == 0, done.stderr.decode()[-2000:]
    opened = set(re.findall(rb"file=(\S+)", done.stderr))
    assert not {name for name in opened if b"libcuda" in name or b"libnv" in name}


@pytest.mark.parametrize(
    ("arguments", "without"),
    [
        (["--help"], {"numpy", "SimpleITK", "matplotlib", "pydantic"}),
        (["run", "--help"], {"numpy", "SimpleITK", "matplotlib", "dinoreg_rt.run.job"}),
    ],
)
def test_help_loads_neither_numpy_nor_simpleitk(arguments: list[str], without: set[str]) -> None:
    code = (
        "import sys\n"
        f"sys.path[:0] = {[str(folder.parent) for folder in PACKAGES.values()]!r}\n"
        "from dinoreg_rt.commands.main import cli\n"
        f"cli.main({arguments!r}, standalone_mode=False)\n"
        f"loaded = {without!r} & set(sys.modules)\n"
        "assert not loaded, loaded\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()

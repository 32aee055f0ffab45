"""Programs compiled against the published header run with every later library of the same name."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from c_tools import KERNELS, ROOT, c_compiler, cxx_compiler, header_fields, run

from dinoreg_kernels import _measure_structs, _structs
from dinoreg_kernels._library import library_file

HERE = Path(__file__).parent
PUBLISHED = (HERE / "abi1" / "dinoreg.h").read_text("utf-8")
HEADER = (KERNELS / "include" / "dinoreg.h").read_text("utf-8")

#: Never shorter. What is added here is added to kernels/dinoreg.map as well.
EXPORTED = {
    "dr_agreement_measure",
    "dr_agreement_workspace_bytes",
    "dr_cpu_isa",
    "dr_cuda_built",
    "dr_cuda_device_count",
    "dr_cuda_problem",
    "dr_features_join",
    "dr_features_pool",
    "dr_field_compose",
    "dr_field_invert",
    "dr_field_jacobian",
    "dr_field_map",
    "dr_image_resample",
    "dr_labels_resample",
    "dr_last_error_message",
    "dr_local_compute",
    "dr_local_workspace_bytes",
    "dr_mind_compute",
    "dr_mind_workspace_bytes",
    "dr_mirror_compare",
    "dr_mirror_workspace_bytes",
    "dr_quality_measure",
    "dr_quality_workspace_bytes",
    "dr_session_abandon",
    "dr_session_begin",
    "dr_session_count",
    "dr_session_create",
    "dr_session_destroy",
    "dr_session_end",
    "dr_session_recording",
    "dr_slices_cut",
    "dr_solver_run",
    "dr_solver_workspace_bytes",
    "dr_status_string",
    "dr_tissue_cover",
    "dr_tokens_sample",
    "dr_values_sum",
    "dr_values_workspace_bytes",
    "dr_version",
    "dr_weights_multiply",
}
#: What the first published library does not have.
LATER = {
    "dr_agreement_measure",
    "dr_agreement_workspace_bytes",
    "dr_features_join",
    "dr_mirror_compare",
    "dr_mirror_workspace_bytes",
    "dr_quality_measure",
    "dr_quality_workspace_bytes",
    "dr_session_abandon",
    "dr_session_begin",
    "dr_session_count",
    "dr_session_create",
    "dr_session_destroy",
    "dr_session_end",
    "dr_session_recording",
    "dr_tissue_cover",
    "dr_tokens_sample",
    "dr_values_sum",
    "dr_values_workspace_bytes",
    "dr_weights_multiply",
}
#: Fields of these would move what follows them in other structs or arrays.
FROZEN = {"dr_point_map", "dr_feature_pair", "dr_feature_distance", "dr_array", "dr_session_counts"}
#: So would fields of results, which are read without their size.
FROZEN |= {"dr_quality", "dr_agreement", "dr_mirror_search", "dr_mirror_test"}


def without_comments(header: str) -> str:
    return re.sub(r"/\*.*?\*/", "", header, flags=re.DOTALL)


def structs(header: str) -> list[str]:
    return re.findall(r"typedef struct (\w+) {", header)


def declarations(header: str) -> dict[str, str]:
    """Return the functions, constants of enums and callback types with their declarations."""
    text = " ".join(without_comments(header).split())
    found = dict(re.findall(r"DR_API [\w *]+?(dr_\w+)(\([^)]*\));", text))
    found |= dict(re.findall(r"(DR_[A-Z0-9_]+) = (\d+)", text))
    found |= dict(re.findall(r"typedef int \(\*(dr_\w+)\)(\([^)]*\));", text))
    return found


def test_exported_names_and_their_version():
    """All of the one version node, and nothing else, not even of the C++ library."""
    lines = run(["nm", "-D", "--defined-only", "--with-symbol-versions", library_file()])
    symbols = [line.split()[-1] for line in lines.splitlines() if " A " not in line]
    assert set(symbols) == {f"{name}@@DINOREG_1" for name in EXPORTED}


def test_soname_is_that_of_the_header():
    (abi,) = re.findall(r"#define DR_ABI (\d+)", HEADER)
    dynamic = run(["readelf", "-d", library_file()])
    assert re.findall(r"SONAME.*\[(.*)\]", dynamic) == [f"libdinoreg.so.{abi}"]
    assert library_file().name == f"libdinoreg.so.{abi}"


def test_published_functions_and_constants_are_as_they_were():
    published = declarations(PUBLISHED)
    assert set(published) >= (EXPORTED - LATER) | {"DR_OK", "DR_FEATURES_LNCC", "dr_progress"}
    now = declarations(HEADER)
    assert set(now) >= EXPORTED
    assert {name: now.get(name) for name in published} == published


@pytest.mark.parametrize("name", structs(PUBLISHED))
def test_published_structs_only_grow_at_their_end(name):
    before, now = header_fields(PUBLISHED, name), header_fields(HEADER, name)
    assert now[: len(before)] == before
    sized = before[0] == ("struct_size", "size_t")
    assert sized != (name in FROZEN)
    if name in FROZEN:
        assert now == before


def test_what_functions_take_is_sized_and_ends_without_padding():
    """A field appended into padding would not change the size by which it is recognised."""
    for struct in (vars(_structs) | vars(_measure_structs)).values():
        if not (isinstance(struct, type) and issubclass(struct, _structs._Sized)):
            continue
        if struct is _structs._Sized:
            continue
        (first, _), (last, kind) = struct._fields_[0], struct._fields_[-1]
        assert first == "struct_size"
        assert struct().struct_size == ctypes.sizeof(struct)
        end = getattr(struct, last).offset + ctypes.sizeof(kind)
        assert end == ctypes.sizeof(struct), struct.__name__


def check_published_program(folder: Path, library: Path) -> None:
    """Compile the published program with its own header, and run it with this library."""
    program, source = folder / "program", HERE / "abi1" / "program.c"
    rpath = f"-Wl,-rpath,{library.parent}"
    run([*c_compiler(), source, "-I", source.parent, "-o", program, library, rpath])
    assert run([program], timeout=60).splitlines() == [
        "abi 1, version 1 or newer",
        "library is newer or the same: 1",
        "found the shift of 2 mm: 1",
        "warped image is closer: 1",
        "features are closer: 1",
        "no fold: 1",
        "refused: invalid argument: shape = (12, 0, 12); wanted 1..32768 on each axis",
    ]


def test_published_program_runs_with_the_library_of_today(tmp_path):
    check_published_program(tmp_path, library_file().resolve())


@pytest.mark.slow
def test_published_program_runs_with_a_library_whose_structs_have_grown(tmp_path):
    """The generic CPU kernels, with one more field in every struct that functions take."""
    kernels = tmp_path / "kernels"
    shutil.copytree(KERNELS, kernels)
    grown, count = re.subn(
        r"(typedef struct (dr_\w+_args|dr_execution) {.*?)(} \2;)",
        r"\1  double later;\n\3",
        HEADER,
        flags=re.DOTALL,
    )
    assert count == len(structs(HEADER)) - len(FROZEN)
    (kernels / "include" / "dinoreg.h").write_text(grown)
    sources = [kernels / "src" / "capi.cpp", *(kernels / "cpu").glob("*.cpp")]
    library = tmp_path / "libdinoreg.so.1"
    flags = ["-std=gnu++20", "-O1", "-fPIC", "-shared", "-fopenmp", "-pthread", "-Wno-psabi"]
    flags += ["-DDR_ISA=generic", "-DDR_ISA_IS_GENERIC", "-Wl,-soname,libdinoreg.so.1"]
    flags += [f"-Wl,--version-script={KERNELS / 'dinoreg.map'}"]
    flags += [f"-I{kernels / name}" for name in ("include", "src", "cpu")]
    run([*cxx_compiler(), *flags, *sources, "-o", library])
    check_published_program(tmp_path, library)


def test_a_later_library_reads_what_it_lacks_as_zero(tmp_path):
    """The struct of a later library, which has one more field, given by a program of today."""
    source = tmp_path / "later.cpp"
    source.write_text(
        '#include "sized.h"\n'
        "struct Later { size_t struct_size; int32_t first, second; double newer; };\n"
        "struct Today { size_t struct_size; int32_t first, second; };\n"
        "namespace { template <> struct Published<Later> {\n"
        '  static constexpr const char* name = "Later"; static constexpr size_t bytes = 16; }; }\n'
        "int main() {\n"
        "  const Today given{sizeof(Today), 3, 4};\n"
        "  Later known{1, 1, 1, 1.0};\n"
        "  const auto* sent = reinterpret_cast<const Later*>(&given);\n"
        '  if (read_sized("args", sent, known) != DR_OK) return 1;\n'
        "  if (known.first != 3 || known.second != 4 || known.newer != 0.0) return 2;\n"
        "  const Later newer{sizeof(Later), 5, 6, 7.0};\n"
        '  if (read_sized("args", &newer, known) != DR_OK || known.newer != 7.0) return 3;\n'
        "}\n"
    )
    program = tmp_path / "later"
    flags = ["-std=gnu++20", "-O1", "-fno-strict-aliasing", "-Wno-unused-function"]
    include = [f"-I{KERNELS / name}" for name in ("include", "src")]
    run([*cxx_compiler(), *flags, *include, source, "-o", program])
    assert subprocess.run([program], check=False).returncode == 0


def test_versions_agree():
    """The header, CMake and both distributions name one version."""
    numbers = re.findall(r"#define DR_VERSION_(?:MAJOR|MINOR) (\d+)", HEADER)
    cmake = re.search(r"project\(dinoreg VERSION ([\d.]+)", (ROOT / "CMakeLists.txt").read_text())
    assert cmake is not None
    assert cmake[1].split(".")[:2] == numbers
    for file in ("pyproject.toml", "packaging/dinoreg-kernels-cu13/pyproject.toml"):
        text = (ROOT / file).read_text("utf-8")
        assert f'\nversion = "{cmake[1]}"\n' in text
    assert f'"dinoreg-kernels-cu13=={cmake[1]}"' in (ROOT / "pyproject.toml").read_text("utf-8")

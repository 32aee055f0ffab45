"""A bundle replaces nothing but a bundle, and that only with --force."""

import fcntl
import os

import numpy as np
import pytest
from checkpoints import TINY, canonical, huggingface, write_safetensors
from checkpoints import make_bundle as make

from dinoreg_export.bundle import in_place
from dinoreg_export.bundle import write as bundle_module
from dinoreg_export.checkpoint.random_weights import RandomWeights
from dinoreg_export.checkpoint.read import open_checkpoint
from dinoreg_rt.bundle.manifest import check_files, read_manifest
from dinoreg_rt.errors import ConfigError, InputError, OutputError, ResourceError
from dinoreg_rt.io.hidden import LOCK

A = TINY["tiny-v3"]


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def meanwhile(action):
    """Return a progress report that acts when the files are nearly written."""
    return lambda stage, fraction: action() if (stage, fraction) == ("verification", 1.0) else None


def test_a_folder_that_appears_meanwhile_stays(tmp_path):
    def appear():
        (tmp_path / "b").mkdir()
        (tmp_path / "b" / "results.txt").write_text("mine")

    with pytest.raises(OutputError, match="exists and is not a bundle"):
        make(tmp_path / "b", progress=meanwhile(appear))
    assert (tmp_path / "b" / "results.txt").read_text() == "mine"
    assert names(tmp_path) == ["b"]


def test_a_bundle_that_appears_meanwhile_stays(tmp_path):
    with pytest.raises(OutputError, match="--force replaces it"):
        make(tmp_path / "b", progress=meanwhile(lambda: make(tmp_path / "b", precision="fp16")))
    assert read_manifest(tmp_path / "b").precision == "fp16"
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_a_file_that_appears_at_the_last_moment_is_kept(kind, tmp_path, monkeypatch):
    def appear():
        monkeypatch.setattr(in_place, "_check_free", lambda *_, **__: None)
        if kind == "folder":
            (tmp_path / "b").mkdir()
        (tmp_path / "b" / "mine" if kind == "folder" else tmp_path / "b").write_text("mine")

    with pytest.raises(OutputError, match="appeared there while the bundle was made"):
        make(tmp_path / "b", progress=meanwhile(appear))
    assert names(tmp_path) == ["b"]
    assert (tmp_path / "b" / "mine" if kind == "folder" else tmp_path / "b").read_text() == "mine"


@pytest.mark.parametrize("name", ["notes.txt", "tokens/a.npy", "encoder_64x64.onnx"])
def test_force_deletes_no_file_of_the_user(name, tmp_path):
    folder = tmp_path / "b"
    made = make(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_text("mine")
    with pytest.raises(OutputError, match=f"'{name.split('/')[0]}' in it is not a file of the"):
        make(folder, force=True)
    assert (folder / name).read_text() == "mine"
    assert read_manifest(folder) == made


def test_force_deletes_no_file_that_appears_meanwhile(tmp_path):
    folder = tmp_path / "b"
    made = make(folder)
    write = meanwhile(lambda: (folder / "notes.txt").write_text("mine"))
    with pytest.raises(OutputError, match=r"'notes.txt' in it"):
        make(folder, force=True, precision="fp16", progress=write)
    assert (folder / "notes.txt").read_text() == "mine"
    check_files(made, folder)
    assert names(tmp_path) == ["b"]


@pytest.mark.parametrize("content", [b"{}", b"\xff\xfe", b""])
def test_force_needs_to_know_the_bundles_files(content, tmp_path):
    make(tmp_path / "b")
    (tmp_path / "b" / "manifest.json").write_bytes(content)
    with pytest.raises(OutputError, match=r"manifest.json cannot be read"):
        make(tmp_path / "b", force=True)


@pytest.mark.parametrize("how", ["inside", "link to a bundle's file", "link in the bundle"])
def test_the_checkpoint_is_not_replaced_by_its_bundle(how, tmp_path):
    folder, elsewhere = tmp_path / "b", tmp_path / "x.safetensors"
    make(folder)
    write_safetensors(elsewhere, huggingface(A, canonical(A)))
    path = folder / "x.safetensors"
    if how == "inside":
        elsewhere.rename(path)
    elif how == "link in the bundle":
        path.symlink_to(elsewhere)
    else:
        elsewhere.rename(folder / "weights.bin")
        path = tmp_path / "link.safetensors"
        path.symlink_to(folder / "weights.bin")
    with (
        open_checkpoint(path, architecture=A) as weights,
        pytest.raises(OutputError, match=r"holds .*safetensors, which is read for this bundle"),
    ):
        make(folder, weights, force=True)
    assert path.is_file()


def test_a_linked_folder_stays_a_link(tmp_path):
    make(tmp_path / "disk" / "real")
    (tmp_path / "b").symlink_to(tmp_path / "disk" / "real")
    make(tmp_path / "b", force=True, precision="fp16")
    assert (tmp_path / "b").is_symlink()
    assert read_manifest(tmp_path / "disk" / "real").precision == "fp16"
    assert (names(tmp_path), names(tmp_path / "disk")) == (["b", "disk"], ["real"])


def test_a_link_to_itself(tmp_path):
    (tmp_path / "b").symlink_to(tmp_path / "b")
    with pytest.raises(OutputError):
        make(tmp_path / "b")


@pytest.mark.parametrize("name", ["b", "b[1]"])
def test_files_of_a_killed_export_are_removed(name, tmp_path):
    left, running = f".{name}.killed00.part", f".{name}.running0.part"
    replaced, others = f".{name}.replaced.killed00.part", ".bb.killed00.part"
    for folder in (left, running, replaced, others):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "weights.bin").write_bytes(b"")
        if folder != replaced:
            (tmp_path / folder / LOCK).touch()
    for path in tmp_path.rglob("*"):
        os.utime(path, (0, 0))
    with (tmp_path / running / LOCK).open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        make(tmp_path / name)
        # Without a bundle of that name, the replaced one is the only copy.
        assert set(names(tmp_path)) == {name, running, others, replaced}
        make(tmp_path / name, force=True)
        assert set(names(tmp_path)) == {name, running, others}


class OrtError(Exception):
    """An error like those of ONNX Runtime, which have no standard type."""


@pytest.mark.parametrize("error", [MemoryError(), OrtError("initialization: std::bad_alloc")])
def test_too_little_memory(error, tmp_path, monkeypatch):
    def fail(*_):
        raise error

    monkeypatch.setattr(bundle_module, "compare", fail)
    with pytest.raises(ResourceError, match=r"out of memory .* smaller --size, .*more memory"):
        make(tmp_path / "b")
    assert names(tmp_path) == []


def test_other_errors_stay_what_they_are(tmp_path, monkeypatch):
    def fail(*_):
        raise OrtError("a fault")

    monkeypatch.setattr(bundle_module, "compare", fail)
    with pytest.raises(OrtError):
        make(tmp_path / "b")


@pytest.mark.parametrize("height", [16400, 1_600_000, 16 * 10**21])
def test_sizes_beyond_reason(height, tmp_path):
    with pytest.raises(ConfigError, match="above 16384 pixels"):
        make(tmp_path / "b", sizes=[(height, 16)])


@pytest.mark.parametrize("name", ["tiny-v3", "tiny-v2", "tiny-convnext"])
def test_an_empty_checkpoint_is_called_so(name, tmp_path):
    weights = RandomWeights(TINY[name], 0)
    read = weights.read
    weights.read = lambda name: np.zeros_like(read(name))
    patch = TINY[name].patch
    with pytest.raises(InputError, match="are zero with this checkpoint: its weights are empty"):
        make(tmp_path / "b", weights, sizes=[(2 * patch, patch)])
    weights.read = lambda n: read(n) if n == "norm.bias" else np.zeros_like(read(n))
    with pytest.raises(InputError, match="all tokens of a picture are equal"):
        make(tmp_path / "b", weights, sizes=[(2 * patch, patch)])

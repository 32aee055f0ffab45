"""Bundles are found by path and by name; damaged ones are refused."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from encoders import describe, write_bundle

from dinoreg_rt.bundle.checkpoints import NOTHING_SPECIAL, bundle_folder, is_checkpoint
from dinoreg_rt.bundle.manifest import (
    MANIFEST_NAME,
    read_manifest,
    write_manifest,
)
from dinoreg_rt.bundle.opened import bundle_names, find_bundle, open_bundle
from dinoreg_rt.errors import ConfigError, InputError

pytest.importorskip("onnx", reason="makes a small ONNX encoder: onnx is not installed")


@pytest.fixture
def folder(tmp_path) -> Path:
    return write_bundle(tmp_path / "models" / "gabor", [(32, 32), (64, 64), (32, 64)], patch=4)


def test_by_path_and_by_name(folder, monkeypatch) -> None:
    monkeypatch.setenv("DINOREG_MODELS", str(folder.parent))
    assert find_bundle(str(folder)) == folder
    assert find_bundle("gabor") == folder
    assert bundle_names(folder.parent) == ["gabor"]


def test_an_unknown_name_lists_the_known_ones(folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DINOREG_MODELS", str(folder.parent))
    with pytest.raises(InputError, match=r"no encoder 'vitl'.*there are: gabor"):
        find_bundle("vitl")
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path / "nothing"))
    with pytest.raises(InputError, match="there is none yet"):
        find_bundle("vitl")


def test_a_folder_that_is_not_a_bundle(tmp_path) -> None:
    with pytest.raises(InputError, match=r"it has no manifest\.json"):
        find_bundle(str(tmp_path))


def test_a_changed_byte_is_refused(folder) -> None:
    graph = folder / "encoder_32x32.onnx"
    data = bytearray(graph.read_bytes())
    data[len(data) // 2] ^= 1
    graph.write_bytes(data)
    with pytest.raises(InputError, match=r"encoder_32x32\.onnx: changed since the export"):
        open_bundle(folder)


def test_a_missing_file_is_refused(folder) -> None:
    (folder / "encoder_64x64.onnx").unlink()
    with pytest.raises(InputError, match=r"encoder_64x64\.onnx: missing"):
        open_bundle(folder)


@pytest.mark.parametrize("name", ["../outside.onnx", "/etc/passwd", "a/b.onnx", "..", "a\\b"])
def test_a_name_that_leaves_the_folder_is_refused(folder, name) -> None:
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["files"][0]["name"] = manifest["graphs"][0]["file"] = name
    path.write_text(json.dumps(manifest))
    with pytest.raises(InputError, match="is not a plain file name inside the bundle"):
        open_bundle(folder)


def test_a_link_out_of_the_folder_is_refused(folder, tmp_path) -> None:
    graph = folder / "encoder_32x32.onnx"
    graph.rename(tmp_path / "elsewhere.onnx")
    graph.symlink_to(tmp_path / "elsewhere.onnx")
    with pytest.raises(InputError, match="not a file of this bundle"):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version"),
        ({"patch": 0}, "patch: Input should be greater than 0"),
        ({"surprise": 1}, "surprise: Extra inputs are not permitted"),
        ({"graphs": []}, "graphs: Tuple should have at least 1 item"),
        ({"normalisation": {"mean": [0, 0, 0], "std": [0, 0, 0]}}, r"normalisation\.std\.0: Input"),
        ({"channels": 10**30}, "channels: Input should be less than or equal to 65536"),
        ({"patch": 5}, r"encoder_32x32\.onnx: 32 x 32 pixels are not a multiple of the patch of 5"),
        ({"patch": 64}, "32 x 32 pixels are not a multiple of the patch of 64"),
        (
            {"graphs": [{"file": "encoder_32x32.onnx", "height": 2**20, "width": 32}]},
            r"graphs\.0\.height: Input should be less than or equal to 65536",
        ),
    ],
)
def test_an_impossible_manifest_is_refused(folder, change, message) -> None:
    path = folder / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(InputError, match=message):
        open_bundle(folder)


def test_the_graph_that_fits_the_slices_is_chosen(folder) -> None:
    opened = open_bundle(folder)
    for aspect, size in ((1.0, (64, 64)), (0.98, (64, 64)), (0.5, (32, 64))):
        graph, reason = opened.graph_for(None, aspect)
        assert (graph.height, graph.width) == size
        assert f"{size[0] // 4} x {size[1] // 4} tokens, which fits" in reason


def test_a_token_grid_by_name_in_either_order(folder) -> None:
    opened = open_bundle(folder)
    assert opened.graph_for((8, 16), 1.0)[0].width == 64
    graph, reason = opened.graph_for((16, 8), 1.0)
    assert (graph.height, graph.width) == (32, 64)
    assert reason.startswith("8 x 16 tokens")


def test_a_token_grid_without_a_graph(folder) -> None:
    with pytest.raises(ConfigError, match=r"no graph of 9 x 7 tokens.*--size 36x28"):
        open_bundle(folder).graph_for((9, 7), 1.0)


@pytest.mark.parametrize("content", [b"\xff\xfe{}", b'{"model": "\xe9"}', b"\x00" * 10])
def test_a_manifest_that_is_not_text_is_refused(folder, content) -> None:
    (folder / "manifest.json").write_bytes(content)
    with pytest.raises(InputError, match=r"manifest\.json: not a manifest of schema 1"):
        open_bundle(folder)


def test_hidden_folders_are_not_listed(folder) -> None:
    folder.rename(folder.parent / ".gabor.part")
    assert bundle_names(folder.parent) == []


def test_names_that_are_too_long(folder, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DINOREG_MODELS", str(folder.parent))
    with pytest.raises(InputError, match=r"no encoder 'xxx.*there are: gabor"):
        find_bundle("x" * 300)
    monkeypatch.setenv("DINOREG_MODELS", str(tmp_path / ("x" * 300)))
    with pytest.raises(InputError, match="models folder cannot be read: File name too long"):
        find_bundle("gabor")


def test_unreadable_files_and_folders_are_errors(folder, monkeypatch) -> None:
    """Permissions are faked, because tests may run as root, who may read everything."""
    monkeypatch.setenv("DINOREG_MODELS", str(folder.parent))
    stat, open_, listdir = Path.stat, Path.open, os.listdir

    def lock(function, name):
        def locked(path, *words, **options):
            if name in Path(path).parts:
                raise PermissionError(13, "Permission denied", str(path))
            return function(path, *words, **options)

        return locked

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", lock(open_, "encoder_32x32.onnx"))
        with pytest.raises(InputError, match=r"encoder_32x32\.onnx: cannot be read: Permission"):
            open_bundle(folder)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lock(stat, "elsewhere"))
        with pytest.raises(InputError, match=r"/elsewhere/x: cannot be read: no permission"):
            find_bundle("/elsewhere/x")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "stat", lock(stat, "gabor"))
        assert bundle_names(folder.parent) == ["gabor"]
    monkeypatch.setattr(os, "listdir", lock(listdir, "models"))
    with pytest.raises(InputError, match="models folder cannot be read: Permission denied"):
        bundle_names(folder.parent)


def test_weights_that_the_manifest_does_not_list_are_refused(folder) -> None:
    import onnx

    name = "w" * 200 + ".bin"  # its length takes two bytes
    path = folder / "encoder_32x32.onnx"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location=name, size_threshold=0)
    manifest = read_manifest(folder)
    graph = describe(path)
    others = tuple(file for file in manifest.files if file.name != path.name)
    write_manifest(manifest.model_copy(update={"files": (graph, *others)}), folder)
    with pytest.raises(InputError, match=rf"encoder_32x32\.onnx reads {name}, for which"):
        open_bundle(folder)
    listed = (graph, describe(folder / name), *others)
    write_manifest(manifest.model_copy(update={"files": listed}), folder)
    (folder / "README.md").write_text("mine")
    open_bundle(folder)


def test_a_file_of_a_bundle_is_not_a_checkpoint(folder, tmp_path) -> None:
    for file in (MANIFEST_NAME, open_bundle(folder).manifest.graphs[0].file):
        with pytest.raises(InputError, match=f"is a file of the encoder bundle in {folder}"):
            bundle_folder(str(folder / file), NOTHING_SPECIAL)
    beside = folder / "mine.onnx"
    beside.write_bytes(b"a checkpoint that lies there by chance")
    assert is_checkpoint(str(beside))
    other = tmp_path / "other" / "weights.onnx"
    other.parent.mkdir()
    other.write_bytes(b"not a bundle")
    (other.parent / MANIFEST_NAME).write_text("{}")
    assert is_checkpoint(str(other))


def test_an_entry_that_says_nothing_is_left_out(tmp_path) -> None:
    """Earlier releases refuse entries that they do not know."""
    folder = write_bundle(tmp_path / "gabor", [(32, 32)])
    (graph,) = json.loads((folder / "manifest.json").read_text("utf-8"))["graphs"]
    assert set(graph) == {"file", "height", "width"}
    assert read_manifest(folder).graphs[0].fused is None

"""Folders in the layout of Hugging Face's cache are checkpoints: links to blobs, a config.json."""

import json

import pytest
from checkpoints import TINY, assert_same, canonical, huggingface, read, write_safetensors
from onnx_exports import write_export

from dinoreg_export.checkpoint.snapshot import check_config, config_of
from dinoreg_rt.errors import InputError

V3, V2 = TINY["tiny-v3"], TINY["tiny-v2-reg4"]
#: Configurations as transformers saves them for its modules.
CONFIG = {
    "tiny-v3": {
        "model_type": "dinov3_vit", "hidden_size": 64, "num_hidden_layers": 2, "patch_size": 16,
        "num_attention_heads": 2, "intermediate_size": 96, "num_register_tokens": 4,
        "use_gated_mlp": False, "hidden_act": "gelu", "layer_norm_eps": 1e-05, "num_channels": 3,
        "rope_theta": 100.0, "image_size": 224, "key_bias": False,
    },
    "tiny-v3-gated": {"model_type": "dinov3_vit", "use_gated_mlp": True, "hidden_act": "silu"},
    "tiny-v2": {
        "model_type": "dinov2", "hidden_size": 64, "num_hidden_layers": 2, "patch_size": 14,
        "mlp_ratio": 2, "layer_norm_eps": 1e-06, "use_swiglu_ffn": False, "hidden_act": "gelu",
    },
    "tiny-v2-reg4": {"model_type": "dinov2_with_registers", "num_register_tokens": 4},
    "tiny-v2-gated": {"model_type": "dinov2", "use_swiglu_ffn": True, "mlp_ratio": 4},
    "tiny-convnext": {
        "model_type": "dinov3_convnext", "hidden_sizes": [16, 24, 32, 40], "depths": [1, 2, 2, 1],
    },
}  # fmt: skip


def cached(tmp_path, a=V3, *, parts=1, **changes):
    """Make a repository in the cache; return its folder and that of its snapshot."""
    repository = tmp_path / "models--facebook--tiny-pretrain-lvd1689m"
    blobs, snapshot = repository / "blobs", repository / "snapshots" / "0123abcd"
    for folder in (blobs, snapshot, repository / "refs"):
        folder.mkdir(parents=True)
    (repository / "refs" / "main").write_text("0123abcd")
    stored = huggingface(a, canonical(a))
    names = sorted(stored)
    index = {}
    for i in range(parts):
        name = f"model-{i}-of-{parts}.safetensors" if parts > 1 else "model.safetensors"
        own = {n: stored[n] for n in names[i::parts]}
        write_safetensors(blobs / f"b{i}", own)
        (snapshot / name).symlink_to(f"../../blobs/b{i}")
        index |= dict.fromkeys(own, name)
    if parts > 1:
        write_link(snapshot, "model.safetensors.index.json", json.dumps({"weight_map": index}))
    write_link(snapshot, "config.json", json.dumps(CONFIG[a.name] | changes))
    return repository, snapshot


def write_link(snapshot, name, content):
    blob = snapshot.parent.parent / "blobs" / f"of {name}"
    blob.write_text(content)
    (snapshot / name).unlink(missing_ok=True)
    (snapshot / name).symlink_to(f"../../blobs/of {name}")


@pytest.mark.parametrize("parts", [1, 3])
@pytest.mark.parametrize("name", TINY)
def test_a_snapshot_and_its_repository(name, parts, tmp_path):
    a = TINY[name]
    for path in cached(tmp_path, a, parts=parts):
        checkpoint, found = read(path, a)
        assert checkpoint.name == "facebook/tiny-pretrain-lvd1689m"
        assert_same(found, canonical(a))


def test_the_name_of_other_folders_is_their_own(tmp_path):
    (tmp_path / "mine").mkdir()
    write_safetensors(tmp_path / "mine" / "model.safetensors", huggingface(V3, canonical(V3)))
    assert read(tmp_path / "mine", V3)[0].name == "mine"
    assert config_of(tmp_path / "mine") is None


def test_a_snapshot_with_an_onnx_file(tmp_path):
    repository, snapshot = cached(tmp_path)
    (snapshot / "model.safetensors").unlink()
    (snapshot / "onnx").mkdir()
    write_export(snapshot / "onnx" / "model.onnx", V3, canonical(V3))
    assert_same(read(repository, V3)[1], canonical(V3))


@pytest.mark.parametrize(
    ("name", "key", "value"),
    [
        ("tiny-v3", "model_type", "dinov2"),
        ("tiny-v3", "hidden_size", 128),
        ("tiny-v3", "num_hidden_layers", 3),
        ("tiny-v3", "patch_size", 14),
        ("tiny-v3", "num_attention_heads", 4),  # not evident from any tensor's shape
        ("tiny-v3", "layer_norm_eps", 1e-6),
        ("tiny-v3", "rope_theta", 10000.0),
        ("tiny-v3", "hidden_act", "silu"),
        ("tiny-v3", "hidden_size", "64"),
        ("tiny-v3", "hidden_size", [64]),
        ("tiny-v2", "model_type", "dinov2_with_registers"),
        ("tiny-v2", "mlp_ratio", 4),
        ("tiny-v2-reg4", "num_register_tokens", 8),
        ("tiny-v2-gated", "use_swiglu_ffn", False),
        ("tiny-convnext", "depths", [1, 2, 2, 2]),
    ],
)
def test_a_configuration_of_another_network(name, key, value, tmp_path):
    a = TINY[name]
    repository, _ = cached(tmp_path, a, **{key: value})
    with pytest.raises(InputError, match=f"says {key} .*the tensors beside it are those of {name}"):
        read(repository, a)


def test_a_configuration_may_omit_values(tmp_path):
    (tmp_path / "config.json").write_text('{"architecture": "vit_small_patch14_dinov2"}')
    check_config(tmp_path / "config.json", V2)


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("{", "not a configuration of a network"),
        ("[1]", "it is not a JSON object"),
        ("[" * 100_000, "not a configuration of a network"),
        ("\udcff", "not a configuration of a network"),
        (" " * (33 << 20), "it is larger than 32 MiB"),
    ],
)
def test_a_configuration_that_is_none(content, problem, tmp_path):
    repository, snapshot = cached(tmp_path)
    (snapshot / "config.json").resolve().write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=problem):
        read(repository, V3)


@pytest.mark.parametrize("name", ["", "..", "../../elsewhere", "gone", "a\0b", "x" * 2000])
def test_a_dangling_reference(name, tmp_path):
    repository, snapshot = cached(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    (repository / "refs" / "main").write_text(name)
    with pytest.raises(InputError, match=r"names the snapshot .*download it again, or give a"):
        read(repository, V3)
    assert read(snapshot, V3)
    (repository / "refs" / "main").unlink()
    with pytest.raises(InputError, match=r"refs/main: cannot be read, .*give a folder in"):
        read(repository, V3)


def test_a_snapshot_that_was_not_downloaded_whole(tmp_path):
    repository, snapshot = cached(tmp_path)
    (repository / "blobs" / "b0").unlink()
    for path in (repository, snapshot):
        with pytest.raises(InputError, match=r"model\.safetensors: is not a checkpoint; give"):
            read(path, V3)

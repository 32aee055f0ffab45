"""Exported graphs agree with transformers' modules, whose random weights they get from files."""

from dataclasses import replace

import numpy as np
import pytest
from checkpoints import TINY, VITS, assert_same, read
from oracle import make_module, tokens_of

from dinoreg_export.bundle.files import GraphFile, write_files
from dinoreg_export.checkpoint.architecture import VitArchitecture
from dinoreg_export.checkpoint.models import ARCHITECTURES
from dinoreg_export.checkpoint.read import open_checkpoint
from dinoreg_export.verify.compare import probe, run_graph

torch = pytest.importorskip("torch", reason="the oracle: pip install '.[oracle]'")
pytest.importorskip("transformers", reason="the oracle: pip install '.[oracle]'")
save_file = pytest.importorskip("safetensors.torch").save_file

pytestmark = [
    pytest.mark.oracle,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]
#: Grids of patches: square, oblong, and larger than any window that attention might have.
GRIDS = [(5, 5), (3, 8), (24, 20)]


def export_of(a, module, tmp_path, grids, *, as_pth=False):
    """Export graphs from a checkpoint of the module."""
    state = {n: v.clone().contiguous() for n, v in module.state_dict().items()}
    path = tmp_path / ("x.pth" if as_pth else "model.safetensors")
    torch.save(state, path) if as_pth else save_file(state, path)
    files = [GraphFile(f"{h}x{w}.onnx", (h * a.patch, w * a.patch)) for h, w in grids]
    with open_checkpoint(path, architecture=a) as weights:
        write_files(weights, files, tmp_path, "fp32")
    return files


def error_between(first, second):
    """Return the largest difference of tokens and of class tokens."""
    pairs = zip(first, second, strict=True)
    return max(np.abs(x.reshape(y.shape) - y).max() for x, y in pairs)


def largest_error(a, tmp_path, grids, *, as_pth=False):
    module = make_module(a)
    errors = []
    for file in export_of(a, module, tmp_path, grids, as_pth=as_pth):
        pixels = probe(*file.size)
        expected = tokens_of(module, pixels, prefix_of(a))
        assert np.abs(expected[0]).max() > 1
        errors.append(error_between(run_graph(tmp_path / file.name, pixels), expected))
    return max(errors)


@pytest.mark.parametrize("name", VITS)
def test_blocks_are_the_hidden_states_of_the_module(name, tmp_path):
    a = TINY[name]
    module = make_module(a)
    state = {n: v.clone().contiguous() for n, v in module.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    pixels = probe(5 * a.patch, 3 * a.patch)
    with torch.no_grad():
        states = module(torch.from_numpy(pixels), output_hidden_states=True).hidden_states
    for number in range(a.depth):
        layers = (str(number),)
        with open_checkpoint(tmp_path / "model.safetensors", architecture=a) as weights:
            write_files(
                weights, [GraphFile("g.onnx", pixels.shape[2:])], tmp_path, "fp32", layers=layers
            )
        (tokens,) = run_graph(tmp_path / "g.onnx", pixels, ["tokens"])
        expected = states[number + 1].numpy()[:, a.prefix_tokens :]
        assert np.abs(tokens.reshape(expected.shape) - expected).max() < 1e-4


#: The antialiased resizing of DINOv2 with registers has no operator in the older exporter.
EXPORTS = [
    (name, dynamo, folded)
    for name in VITS
    for dynamo, folded in ((False, True), (False, False), (True, True))
    if dynamo or name != "tiny-v2-reg4"
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "dynamo", "folded"), EXPORTS)
def test_an_export_of_torch_is_a_checkpoint(name, dynamo, folded, tmp_path):
    """Exports of a module with a head by both exporters hold the tensors of the module's state."""
    pytest.importorskip("onnxscript", reason="the oracle: pip install '.[oracle]'")
    a = TINY[name]
    module = make_module(a)

    class WithHead(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.backbone, self.head = module, torch.nn.Linear(a.dim, 3)

        def forward(self, pixel_values):
            return self.head(self.backbone(pixel_values).last_hidden_state[:, 1:])

    state = {n: v.clone().contiguous() for n, v in module.state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    pixels = torch.randn(1, 3, 4 * a.patch, 6 * a.patch)
    path = str(tmp_path / "model.onnx")
    if dynamo:
        torch.onnx.export(WithHead().eval(), (pixels,), path, dynamo=True, verbose=False)
    else:
        axes = {"pixel_values": {0: "batch", 2: "height", 3: "width"}}
        torch.onnx.export(
            WithHead().eval(), (pixels,), path, dynamo=False, input_names=["pixel_values"],
            dynamic_axes=axes, do_constant_folding=folded, opset_version=17,
        )  # fmt: skip
    assert_same(read(tmp_path / "model.onnx", a)[1], read(tmp_path / "model.safetensors", a)[1])


def prefix_of(a):
    return a.prefix_tokens if isinstance(a, VitArchitecture) else 1


@pytest.mark.parametrize("name", TINY)
def test_tiny(name, tmp_path):
    a = TINY[name]
    if name == "tiny-v2-gated":
        # The module derives the width itself: two thirds of four times 64, rounded to eights.
        a = replace(a, hidden=176)
    assert largest_error(a, tmp_path, GRIDS) < 1e-4


@pytest.mark.parametrize("name", ["tiny-v3", "tiny-v2-reg4", "tiny-convnext"])
def test_a_file_of_torch_save(name, tmp_path):
    assert largest_error(TINY[name], tmp_path, [(3, 4)], as_pth=True) < 1e-4


def test_true_depth_of_the_small_one(tmp_path):
    assert largest_error(ARCHITECTURES["dinov3-vits16"], tmp_path, [(6, 9)]) < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["vits16", "vitb16", "vitl16", "vits16plus", "convnext-tiny", "convnext-base"]
)
def test_true_depth(name, tmp_path):
    """The graph is within 1e-4 of the module in float64, or no worse than the module in float32.

    Weights this wide exceed the precision of float32: the errors of graph and module were 1.4e-4
    and 1.7e-4 for ViT-L, and 8e-6 and 1.1e-5 for ViT-S.
    """
    a = ARCHITECTURES[f"dinov3-{name}"]
    module = make_module(a)
    files = export_of(a, module, tmp_path, [(14, 14), (6, 9)])
    pixels = [probe(*file.size) for file in files]
    graph = [run_graph(tmp_path / f.name, p) for f, p in zip(files, pixels, strict=True)]
    single = [tokens_of(module, p, prefix_of(a)) for p in pixels]
    module = module.double()
    for ours, theirs, p in zip(graph, single, pixels, strict=True):
        exact = tokens_of(module, p.astype(np.float64), prefix_of(a))
        assert error_between(ours, exact) < max(1e-4, error_between(theirs, exact))

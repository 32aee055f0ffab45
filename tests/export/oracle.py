"""Modules of transformers in the shape of our encoders: the oracle of the parity tests."""

from __future__ import annotations

from checkpoints import Tensors

from dinoreg_export.checkpoint.architecture import Architecture, VitArchitecture
from dinoreg_export.checkpoint.layouts import canonical


def make_module(a: Architecture):
    """Make a module with transformers' random weights, wide enough that every part matters."""
    import torch
    import transformers as t

    torch.manual_seed(0)
    if not isinstance(a, VitArchitecture):
        config = t.DINOv3ConvNextConfig(
            hidden_sizes=list(a.dims), depths=list(a.depths), initializer_range=0.1
        )
        module = t.DINOv3ConvNextModel(config)
    elif a.generation == 3:
        module = t.DINOv3ViTModel(t.DINOv3ViTConfig(**_shared(a), patch_size=16,
            intermediate_size=a.hidden, use_gated_mlp=a.gated, num_register_tokens=4,
            hidden_act="silu" if a.gated else "gelu",
            query_bias="q" in a.biased, value_bias="v" in a.biased))  # fmt: skip
    else:
        ratio = 4 if a.gated else a.hidden // a.dim
        more = _shared(a) | {"image_size": 518, "patch_size": 14, "mlp_ratio": ratio}
        more["use_swiglu_ffn"] = a.gated
        if a.register_tokens:
            config = t.Dinov2WithRegistersConfig(**more, num_register_tokens=a.register_tokens)
            module = t.Dinov2WithRegistersModel(config)
        else:
            module = t.Dinov2Model(t.Dinov2Config(**more))
    with torch.no_grad():
        for name, values in module.named_parameters():
            if "norm" in name or "gamma" in name or "lambda" in name:
                # These are initialised to ones or near zero, which would hide their effect.
                values.copy_(torch.randn_like(values) * 0.1 + (0.0 if "bias" in name else 1.0))
            elif name.endswith(("bias", "token", "tokens", "position_embeddings")):
                values.copy_(torch.randn_like(values) * 0.1)
    return module.eval()


def _shared(a: VitArchitecture) -> dict:
    return {
        "hidden_size": a.dim,
        "num_hidden_layers": a.depth,
        "num_attention_heads": a.heads,
        "initializer_range": 0.1,
        "layer_norm_eps": a.epsilon,
    }


def load(a: Architecture, tensors: Tensors):
    """Make a module with our tensors."""
    import torch

    module = make_module(a)
    state = module.state_dict()
    pieces, _ = canonical(state)
    assert pieces.keys() == tensors.keys()
    for name, piece in pieces.items():
        part = state[piece.stored].chunk(piece.parts)[piece.part]
        part.copy_(torch.from_numpy(tensors[name]).reshape(part.shape))
    return module


def tokens_of(module, pixels, prefix: int):
    """Compute patch tokens (N, T, C) and the class token (N, C)."""
    import torch

    with torch.no_grad():
        out = module(torch.from_numpy(pixels)).last_hidden_state.numpy()
    return out[:, prefix:], out[:, 0]

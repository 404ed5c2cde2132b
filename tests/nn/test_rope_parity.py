"""A rotary ViT with released weights gives the released numbers, and with transformers' weights theirs."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from torchjepa.nn import RotaryPositions, ViT

RELEASED = RotaryPositions(pairing="released")
# transformers' names of the parts that are called otherwise.
TRANSFORMERS = {
    "embeddings.patch_embeddings.proj.": "patch_embed.",
    "layer.": "blocks.",
    "attention.": "attn.",
    "layernorm.": "norm.",
}


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def released():
    return load_file(Path(__file__).parents[1] / "fixtures" / "vjepa2_official.safetensors")


@pytest.fixture(scope="module")
def vit(released):
    vit = ViT(patch_size=(2, 8, 8), embed_dim=32, depth=2, num_heads=2, positions=RELEASED)
    prefix = "encoder."
    state = {name.removeprefix(prefix): v for name, v in released.items() if name.startswith(prefix)}
    state = {name.replace("patch_embed.proj.", "patch_embed."): value for name, value in state.items()}
    state["patch_embed.weight"] = state["patch_embed.weight"].flatten(1)
    vit.load_state_dict(state)
    return vit


def test_full_and_masked_encoder(released, vit):
    close(vit(released["io.clips"]), released["io.encoder_full"])
    close(vit(released["io.clips"], released["io.context"]), released["io.encoder_context"])


def test_each_layer(released, vit):
    stream = vit(released["io.clips"], return_intermediates=[0, 1])[1]
    for layer in (0, 1):
        close(vit.norm(stream[f"block_{layer}"]), released[f"io.encoder_layer_{layer}"])


def test_the_correct_pairing_is_another_model(released, vit):
    other = ViT(**(vit.config | {"positions": "rope"}))
    other.load_state_dict(vit.state_dict())
    assert (other(released["io.clips"]) - released["io.encoder_full"]).abs().max() > 1e-3


def from_transformers(values):
    """Tensors by our names, in our shapes: queries, keys and values are one."""
    out = {}
    for name, value in values.items():
        for theirs, ours in TRANSFORMERS.items():
            name = name.replace(theirs, ours)
        out[name] = value.flatten(1) if name == "patch_embed.weight" else value
    for name in [name for name in out if ".query." in name]:
        parts = [out.pop(name.replace("query", part)) for part in ("query", "key", "value")]
        out[name.replace("query", "qkv")] = torch.cat(parts)
    return out


@pytest.mark.parametrize(
    ("dim", "heads", "frames", "side", "tubelet"),
    [(24, 2, 4, 24, 2), (64, 1, 8, 16, 2), (60, 3, 3, 32, 1), (88, 1, 6, 24, 3)],
)
def test_transformers_encoder_and_its_gradients(dim, heads, frames, side, tubelet):
    transformers = pytest.importorskip("transformers")
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=side,
        frames_per_clip=frames,
        tubelet_size=tubelet,
        hidden_size=dim,
        num_attention_heads=heads,
        num_hidden_layers=3,
        initializer_range=0.2,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
    )
    theirs = transformers.VJEPA2Model(config).encoder
    ours = ViT(patch_size=(tubelet, 8, 8), embed_dim=dim, depth=3, num_heads=heads, positions=RELEASED)
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    clips = torch.randn(2, 3, frames, side, side)
    tokens, wanted = ours(clips), theirs(clips.transpose(1, 2)).last_hidden_state
    close(tokens, wanted)
    direction = torch.randn_like(tokens) / tokens.numel() ** 0.5
    for result in (tokens, wanted):
        (result * direction).sum().backward()
    gradients = from_transformers({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[name], atol=1e-5, rtol=1e-4)

"""transformers as the oracle: their weights into ours and back, the same outputs."""

from __future__ import annotations

import tempfile

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.hub.checkpoints import close
from torchjepa.hub import export_state, load
from torchjepa.nn import sincos_positions
from torchjepa.types import Grid

transformers = pytest.importorskip("transformers")

# Large enough that a wrong place shows, small enough that outputs stay of order one.
STD = 0.1


def saved(model):
    """Written by transformers, opened by us; what was written; and ours written back into theirs."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return load(folder, "all")


def written_back(model, loaded, family):
    """Their class, with other weights, filled from what we write."""
    with tempfile.TemporaryDirectory() as folder:
        again = type(model)(model.config)
        state = {name: tensor.clone() for name, tensor in export_state(loaded.parts, family).items()}
        again.save_pretrained(folder, state_dict=state)
        return type(model).from_pretrained(folder).eval()


def same_weights(ours, theirs):
    ours, theirs = ours.state_dict(), theirs.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in theirs.items())


def randomized(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in model.state_dict().items():
        tensor.copy_(
            torch.randn(tensor.shape, generator=generator) * STD + ("norm" in name and "weight" in name)
        )
    return model.eval()


def drawn(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


HEADS = st.sampled_from([(1, 12), (2, 16), (3, 18), (2, 36)])


@settings(max_examples=12)
@given(
    HEADS, st.integers(1, 3), st.sampled_from([2, 4]), st.integers(1, 4), st.booleans(), st.integers(0, 99)
)
def test_ijepa(heads, depth, patch, side, classifies, seed):
    config = transformers.IJepaConfig(
        hidden_size=heads[0] * heads[1],
        num_hidden_layers=depth,
        num_attention_heads=heads[0],
        intermediate_size=3 * heads[0] * heads[1],
        image_size=side * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
        num_labels=5,
    )
    classes = transformers.IJepaForImageClassification, transformers.IJepaModel
    with torch.no_grad():
        theirs = randomized(classes[not classifies](config), seed)
        body = theirs.ijepa if classifies else theirs
        body.embeddings.position_embeddings.copy_(
            sincos_positions(Grid(h=side, w=side), config.hidden_size)[None]
        )
        ours = saved(theirs)
        assert ours.preprocessing.image_size == side * patch
        images = drawn(2, 3, side * patch, side * patch)
        tokens = ours.model(images)
        close(tokens, body(images).last_hidden_state)
        if side > 1:
            wide = drawn(1, 3, 2 * patch, 5 * patch)
            close(ours.model(wide), body(wide, interpolate_pos_encoding=True).last_hidden_state)
        if classifies:
            close(ours.parts["classifier"](tokens.mean(1)), theirs(images).logits)
        same_weights(written_back(theirs, ours, "transformers_ijepa"), theirs)


@st.composite
def vjepa2_configs(draw):
    (heads, width), (narrow_heads, narrow_width) = draw(HEADS), draw(HEADS)
    patch, tubelet = draw(st.sampled_from([2, 4])), draw(st.integers(1, 3))
    return transformers.VJEPA2Config(
        hidden_size=heads * width,
        num_attention_heads=heads,
        num_hidden_layers=draw(st.integers(1, 3)),
        mlp_ratio=draw(st.sampled_from([2.0, 4.0])),
        crop_size=patch * draw(st.integers(1, 3)),
        patch_size=patch,
        tubelet_size=tubelet,
        frames_per_clip=tubelet * draw(st.integers(1, 3)),
        pred_hidden_size=narrow_heads * narrow_width,
        pred_num_attention_heads=narrow_heads,
        pred_num_hidden_layers=draw(st.integers(1, 2)),
        pred_num_mask_tokens=draw(st.integers(1, 4)),
        num_pooler_layers=draw(st.integers(1, 2)),
        num_labels=5,
    )


@settings(max_examples=12)
@given(vjepa2_configs(), st.booleans(), st.integers(0, 99))
def test_vjepa2(config, classifies, seed):
    classes = transformers.VJEPA2ForVideoClassification, transformers.VJEPA2Model
    with torch.no_grad():
        theirs = randomized(classes[not classifies](config), seed)
        body = theirs.vjepa2 if classifies else theirs
        ours = saved(theirs)
        size = config.crop_size
        grid = ours.model.grid((config.frames_per_clip, size, size))
        clips = drawn(2, 3, config.frames_per_clip, size, size)
        tokens = ours.model(clips)
        order = torch.rand(2, grid.num_tokens, generator=torch.Generator().manual_seed(seed)).argsort(1)
        seen, asked = order[:, : grid.num_tokens // 2 + 1].contiguous(), order[:, : grid.num_tokens // 3 + 1]
        found = body(clips.transpose(1, 2), context_mask=[seen], target_mask=[asked])
        close(tokens, found.last_hidden_state)
        # transformers always asks with its second mask token, counted round.
        context = torch.stack([tokens[row, seen[row]] for row in range(2)])
        index = 1 % config.pred_num_mask_tokens
        predicted = ours.parts["predictor"](context, seen, asked[:, None].contiguous(), grid, index)
        close(predicted[:, 0], found.predictor_output.last_hidden_state)
        if classifies:
            close(ours.parts["classifier"](tokens), theirs(clips.transpose(1, 2)).logits)
        same_weights(written_back(theirs, ours, "transformers_vjepa2"), theirs)


def test_names_in_memory_are_read_too(tmp_path):
    config = transformers.IJepaConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=8,
        patch_size=4,
    )
    with torch.no_grad():
        theirs = randomized(transformers.IJepaModel(config, add_pooling_layer=True), 0)
        theirs.embeddings.position_embeddings.copy_(sincos_positions(Grid(h=2, w=2), 24)[None])
    torch.save(theirs.state_dict(), tmp_path / "weights.bin")
    loaded = load(tmp_path / "weights.bin", num_heads=2)
    assert loaded.family == "transformers_ijepa"
    assert torch.equal(loaded.model.blocks[1].mlp.fc2.weight, theirs.layers[1].mlp.fc2.weight)
    assert "pooler.dense.weight: transformers' own" in str(loaded.report)

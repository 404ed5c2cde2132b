"""With the weights of transformers' V-JEPA 2 our networks give its outputs and gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.nn.foreign import close, from_transformers, gradients_close
from torchjepa.nn import AttentiveClassifier, Predictor, RotaryPositions, ViT
from torchjepa.types import Grid

transformers = pytest.importorskip("transformers")
RELEASED = RotaryPositions(pairing="released")


def build(frames, side, tubelet, dim, heads, **changes):
    """Their model, random, and the grid of its inputs."""
    sizes = {"num_hidden_layers": 3, "pred_hidden_size": 12, "pred_num_attention_heads": 1}
    config = transformers.VJEPA2Config(
        patch_size=8,
        crop_size=side,
        frames_per_clip=frames,
        tubelet_size=tubelet,
        hidden_size=dim,
        num_attention_heads=heads,
        initializer_range=0.2,
        **(sizes | {"pred_num_hidden_layers": 1} | changes),
    )
    torch.manual_seed(0)
    return transformers.VJEPA2Model(config), Grid(t=frames // tubelet, h=side // 8, w=side // 8)


def backward(*results):
    direction = torch.randn_like(results[0]) / results[0].numel() ** 0.5
    for result in results:
        (result * direction).sum().backward()


@pytest.mark.parametrize(
    ("dim", "heads", "frames", "side", "tubelet"),
    [(24, 2, 4, 24, 2), (64, 1, 8, 16, 2), (60, 3, 3, 32, 1), (88, 1, 6, 24, 3)],
)
def test_encoder_and_its_gradients(dim, heads, frames, side, tubelet):
    theirs = build(frames, side, tubelet, dim, heads)[0].encoder
    ours = ViT(patch_size=(tubelet, 8, 8), embed_dim=dim, depth=3, num_heads=heads, positions=RELEASED)
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    clips = torch.randn(2, 3, frames, side, side)
    tokens, wanted = ours(clips), theirs(clips.transpose(1, 2)).last_hidden_state
    close(tokens, wanted)
    backward(tokens, wanted)
    gradients_close(ours, theirs)


@settings(max_examples=8)
@given(
    frames=st.sampled_from([2, 4, 6]),
    side=st.sampled_from([16, 24]),
    depth=st.integers(1, 3),
    heads=st.integers(1, 3),
    head_dim=st.integers(3, 17).map(lambda half: 2 * half),
    num_mask_tokens=st.integers(2, 5),
    data=st.data(),
)
def test_predictor_and_its_gradients(frames, side, depth, heads, head_dim, num_mask_tokens, data):
    sizes = {
        "pred_hidden_size": heads * head_dim,
        "pred_num_attention_heads": heads,
        "pred_num_hidden_layers": depth,
        "pred_num_mask_tokens": num_mask_tokens,
        "pred_zero_init_mask_tokens": False,
    }
    model, grid = build(frames, side, 2, 24, 2, num_hidden_layers=1, **sizes)
    theirs = model.predictor
    ours = Predictor(
        encoder_dim=24,
        embed_dim=heads * head_dim,
        depth=depth,
        num_heads=heads,
        positions=RELEASED,
        num_mask_tokens=num_mask_tokens,
    )
    ours.load_state_dict(from_transformers(theirs.state_dict()))
    tokens = torch.randn(2, grid.num_tokens, 24)
    order = torch.stack([torch.randperm(grid.num_tokens) for _ in range(2)])
    seen, asked = order.tensor_split([data.draw(st.integers(1, grid.num_tokens - 1))], dim=1)
    context = torch.stack([sample[ids] for sample, ids in zip(tokens, seen)])
    # Theirs always asks with the token of index 1.
    out = ours(context, seen, asked[:, None], grid, mask_index=1)[:, 0]
    wanted = theirs(tokens, [seen], [asked]).last_hidden_state
    close(out, wanted)
    backward(out, wanted)
    gradients_close(ours, theirs, tolerance=3e-5)


@pytest.mark.parametrize(("dim", "heads", "depth"), [(24, 2, 1), (32, 4, 2), (18, 3, 4)])
def test_classifier_and_its_gradients(dim, heads, depth):
    config = transformers.VJEPA2Config(
        hidden_size=dim,
        num_attention_heads=heads,
        num_pooler_layers=depth - 1,
        num_hidden_layers=1,
        pred_hidden_size=12,
        pred_num_attention_heads=1,
        pred_num_hidden_layers=1,
        initializer_range=0.2,
        num_labels=7,
    )
    torch.manual_seed(0)
    theirs = transformers.VJEPA2ForVideoClassification(config)
    head = torch.nn.ModuleDict({"pooler": theirs.pooler, "linear": theirs.classifier})
    ours = AttentiveClassifier(embed_dim=dim, num_classes=7, num_heads=heads, depth=depth, norm_eps=1e-6)
    ours.load_state_dict(from_transformers(head.state_dict()))
    tokens = torch.randn(3, 11, dim)
    logits, wanted = ours(tokens), theirs.classifier(theirs.pooler(tokens))
    close(logits, wanted)
    backward(logits, wanted)
    gradients_close(ours, head)

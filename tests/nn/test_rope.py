"""Rotary positions against loops over tokens and channels in float64, and a published number."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.nn.slow import place_of
from torchjepa.nn import RotaryPositions, ViT, rotary_angles
from torchjepa.nn.attention import Attention, Block
from torchjepa.nn.rope import RotaryTables, even_channels_first, rotate_heads
from torchjepa.types import Grid

GOLDEN = [-0.127223, 0.220619, 0.287867, 0.400898, -0.579668, 0.720962, 0.675689, 0.802096]
PAIRINGS = ["correct", "released"]


def slow_turn(x, place, pairing, base=10000.0):
    """One token's channels of one head at (t, h, w), channel by channel."""
    share = 2 * (len(x) // 3 // 2)
    half = share // 2
    out = list(x)
    for axis in range(3):
        for channel in range(share):
            rank = channel % half if pairing == "released" else channel // 2
            angle = place[axis] * base ** (-rank / half)
            here = axis * share + channel
            other = -x[here + 1] if channel % 2 == 0 else x[here - 1]
            out[here] = x[here] * math.cos(angle) + other * math.sin(angle)
    return out


def slow_heads(x, ids, grid, pairing):
    """The same for `[b, heads, n, e]`."""
    out = x.clone()
    for sample in range(x.shape[0]):
        for head in range(x.shape[1]):
            for row, token in enumerate(ids[sample].tolist()):
                turned = slow_turn(x[sample, head, row].tolist(), place_of(token, grid), pairing)
                out[sample, head, row] = torch.tensor(turned, dtype=x.dtype)
    return out


def slow_attention(layer, x, ids, grid, pairing):
    q, k, v = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = slow_heads(q, ids, grid, pairing), slow_heads(k, ids, grid, pairing)
    weights = (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])).softmax(-1)
    return layer.proj((weights @ v).transpose(1, 2).flatten(2))


def rotation_of(ids, grid, head_dim, pairing, like=None):
    like = torch.zeros((), dtype=torch.float64) if like is None else like
    return RotaryTables(head_dim, RotaryPositions(pairing=pairing)).rotation(grid, ids, like)


def draw_ids(grid, batch_size, num):
    return torch.stack([torch.randperm(grid.num_tokens)[:num] for _ in range(batch_size)])


def test_released_golden_numbers():
    x = torch.arange(1, 9, dtype=torch.float64) / 10
    angles = rotary_angles(Grid(t=4), 24, RotaryPositions(pairing="released"))[3, :8]
    other = torch.stack([-x[1::2], x[0::2]], dim=1).flatten()
    assert (x * angles.cos() + other * angles.sin()).tolist() == pytest.approx(GOLDEN, abs=1e-6)
    assert slow_turn([*x.tolist(), *[0.0] * 16], (3, 0, 0), "released")[:8] == pytest.approx(GOLDEN, abs=1e-6)


@given(
    t=st.integers(1, 4),
    h=st.integers(1, 4),
    w=st.integers(1, 4),
    head_dim=st.integers(3, 44).map(lambda half: 2 * half),
    pairing=st.sampled_from(PAIRINGS),
)
def test_heads_equal_a_loop_over_tokens_and_channels(t, h, w, head_dim, pairing):
    grid = Grid(t=t, h=h, w=w)
    ids = draw_ids(grid, 2, (grid.num_tokens + 1) // 2)
    x = torch.randn(2, ids.shape[1], 3, 1, head_dim, dtype=torch.float64)
    first = torch.cat([x[..., 0::2], x[..., 1::2]], dim=-1)
    q, k, v = rotate_heads(first, rotation_of(ids, grid, head_dim, pairing), 2)
    for ours, theirs in ((q, x[:, :, 0]), (k, x[:, :, 1])):
        wanted = slow_heads(theirs.transpose(1, 2), ids, grid, pairing)
        torch.testing.assert_close(ours, torch.cat([wanted[..., 0::2], wanted[..., 1::2]], dim=-1))
    assert torch.equal(v, first[:, :, 2].transpose(1, 2))


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_attention_and_gradients_equal_the_loop(pairing):
    # The loop turns detached numbers, so gradients are compared through finite differences of a few weights.
    layer, grid = Attention(28, 2).double(), Grid(t=2, h=2, w=3)
    ids = draw_ids(grid, 2, 5)
    rotation = rotation_of(ids, grid, 14, pairing)
    x = torch.randn(2, 5, 28, dtype=torch.float64)
    torch.testing.assert_close(layer(x, rotation=rotation), slow_attention(layer, x, ids, grid, pairing))
    direction = torch.randn(2, 5, 28, dtype=torch.float64)
    (layer(x, rotation=rotation) * direction).sum().backward()
    for row, column in [(0, 0), (13, 5), (30, 27), (55, 1), (70, 3)]:
        values = []
        for step in (1e-5, -2e-5):
            layer.qkv.weight.data[row, column] += step
            values.append((slow_attention(layer, x, ids, grid, pairing) * direction).sum().item())
        layer.qkv.weight.data[row, column] += 1e-5
        slope = (values[0] - values[1]) / 2e-5
        assert layer.qkv.weight.grad[row, column].item() == pytest.approx(slope, rel=1e-5, abs=1e-8)


@pytest.mark.parametrize("num_rotated", [0, 1, 2])
def test_gradients_by_finite_differences(num_rotated):
    rotation = rotation_of(draw_ids(Grid(t=2, h=2, w=2), 2, 3), Grid(t=2, h=2, w=2), 8, "released")
    x = torch.randn(2, 3, 2, 2, 8, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: rotate_heads(x, rotation, num_rotated), (x,))


def test_even_channels_first_reorders_the_first_heads_alone():
    order = even_channels_first(12, 2, 4, torch.device("cpu"))
    assert order.tolist() == [0, 2, 1, 3, 4, 6, 5, 7, 8, 9, 10, 11]


@pytest.mark.parametrize("pairing", PAIRINGS)
def test_the_last_queries_alone_equal_the_tail_of_all(pairing):
    block, grid = Block(24, 2).double(), Grid(t=2, h=2, w=2)
    rotation = rotation_of(draw_ids(grid, 2, 7), grid, 12, pairing)
    x = torch.randn(2, 7, 24, dtype=torch.float64, requires_grad=True)
    results = []
    for out in (block(x, 3, rotation), block(x, rotation=rotation)[:, -3:]):
        gradients = torch.autograd.grad(out.sin().sum(), [x, *block.parameters()])
        results.append([out, *gradients])
    for tail, full in zip(*results):
        torch.testing.assert_close(tail, full)


def test_correct_pairs_see_only_distances_and_keep_lengths():
    x, y = torch.randn(2, 1, 1, 1, 1, 24, dtype=torch.float64)
    grid = Grid(t=6, h=6, w=6)

    def turned(z, place):
        ids = torch.tensor([[(place[0] * 6 + place[1]) * 6 + place[2]]])
        return rotate_heads(z, rotation_of(ids, grid, 24, "correct"), 1)[0].flatten()

    products = [turned(x, (s, 2 * s, 1)) @ turned(y, (s + 2, 2 * s + 1, 0)) for s in range(3)]
    assert torch.stack(products).tolist() == pytest.approx([products[0].item()] * 3)
    assert turned(x, (3, 1, 5)).norm().item() == pytest.approx(x.norm().item())


def test_released_pairs_do_neither():
    angles = rotary_angles(Grid(w=3), 24, RotaryPositions(pairing="released"))
    assert not torch.equal(angles[2, 16:24:2], angles[2, 17:24:2])


def test_the_rest_and_absent_axes_stay():
    angles = rotary_angles(Grid(h=3, w=5), 64)
    assert angles.shape == (15, 64)
    assert not angles[:, :20].any()
    assert not angles[:, 60:].any()
    assert angles[7, 20:22].tolist() == [1, 1]
    assert angles[7, 40:44].tolist() == pytest.approx([2, 2, 2 * 10000**-0.1, 2 * 10000**-0.1])


def test_other_grids_are_spread_over_the_trained_one():
    spread = RotaryPositions(trained_grid=(None, 16, 4))
    angles = rotary_angles(Grid(t=3, h=31, w=1), 12, spread)
    assert angles[2 * 31 + 3, [0, 4, 8]].tolist() == pytest.approx([2, 1.5, 0])
    same = Grid(t=3, h=16, w=4)
    assert torch.equal(rotary_angles(same, 12, spread), rotary_angles(same, 12))


def test_base():
    assert rotary_angles(Grid(w=4), 12, RotaryPositions(base=100.0))[3, 10].item() == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"base": 0.0}, "base must be positive and finite, got 0.0"),
        ({"trained_grid": (16, 16)}, r"must be three lengths \(t, h, w\).*got \(16, 16\); use"),
        ({"trained_grid": (None, 0, 16)}, r"each at least 1 or None, got \(None, 0, 16\)"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        RotaryPositions(**arguments)


@pytest.mark.parametrize("num_heads", [4, 8])
def test_heads_that_cannot_turn(num_heads):
    with pytest.raises(
        ValueError, match=r"even number of channels, at least 6, got [37]; choose another number"
    ):
        ViT(patch_size=4, embed_dim={4: 28, 8: 24}[num_heads], depth=1, num_heads=num_heads, positions="rope")


def test_config_survives_json():
    spread = RotaryPositions(pairing="released", trained_grid=(None, 16, 16))
    assert RotaryPositions(**json.loads(json.dumps(spread.config))) == spread

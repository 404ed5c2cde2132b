"""V-JEPA 2-AC's predictor against a loop over tokens; causality; memory of long clips."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from tests.nn.slow import place_of, same_with_gradients, slow_block, turn_matrix
from torchjepa.nn import ActionPredictor, RotaryPositions, recompute_activations
from torchjepa.nn.action_predictor import _attend_to_the_past
from torchjepa.types import Grid

GRID = Grid(t=3, h=1, w=2)


def small_predictor(**changes):
    sizes = {"encoder_dim": 10, "action_dim": 4, "state_dim": 3, "extrinsics_dim": 5}
    sizes |= {"embed_dim": 24, "depth": 2, "num_heads": 2, "init_std": 0.3, "seed": 1}
    return ActionPredictor(**(sizes | changes)).double()


def inputs(grid=GRID, b=2):
    shapes = (grid.num_tokens, 10), (grid.t, 4), (grid.t, 3), (grid.t, 5)
    return [torch.randn(b, *shape, dtype=torch.float64, requires_grad=True) for shape in shapes]


def slow_predict(predictor, tokens, actions, states, extrinsics, grid, pairing):
    per_frame, num_told = grid.h * grid.w, 2 if extrinsics is None else 3
    samples = []
    for sample in range(len(tokens)):
        stream, places = [], []
        for t in range(grid.t):
            told = [predictor.action_embed(actions[sample, t]), predictor.state_embed(states[sample, t])]
            if extrinsics is not None:
                told.append(predictor.extrinsics_embed(extrinsics[sample, t]))
            ids = range(t * per_frame, (t + 1) * per_frame)
            stream += told + [predictor.embed(tokens[sample, i]) for i in ids]
            # What is told is turned on the temporal axis alone.
            places += [(t, 0, 0)] * len(told) + [place_of(i, grid) for i in ids]
        x = torch.stack(stream)
        turns = [turn_matrix(place, 12, pairing) for place in places]
        for block in predictor.blocks:
            x = slow_block(block, x, lambda i, j: places[j][0] <= places[i][0], turns)  # noqa: B023
        kept = [row for i, row in enumerate(x) if i % (num_told + per_frame) >= num_told]
        samples.append(predictor.proj(predictor.norm(torch.stack(kept))))
    return torch.stack(samples)


@pytest.mark.parametrize("pairing", ["correct", "released"])
@pytest.mark.parametrize("grid", [GRID, Grid(t=1, h=2, w=2), Grid(t=2, h=3, w=2)])
@pytest.mark.parametrize("has_extrinsics", [False, True])
def test_equals_a_loop_over_tokens_with_gradients(pairing, grid, has_extrinsics):
    predictor = small_predictor(positions=RotaryPositions(pairing=pairing))
    tokens, actions, states, extrinsics = inputs(grid)
    given = extrinsics if has_extrinsics else None
    fast = predictor(tokens, actions, states, grid, extrinsics=given)
    slow = slow_predict(predictor, tokens, actions, states, given, grid, pairing)
    wanted = [tokens, actions, states, *predictor.parameters()]
    same_with_gradients(fast, slow, wanted)


@pytest.mark.parametrize(("num_frames", "per_frame"), [(1, 3), (4, 1), (3, 4)])
def test_what_sees_what_equals_a_mask_with_gradients(num_frames, per_frame):
    n = num_frames * per_frame
    mask = torch.zeros(n, n, dtype=torch.bool)
    for i in range(n):
        for j in range(n):
            mask[i, j] = j // per_frame <= i // per_frame
    heads = [torch.randn(2, 2, n, 6, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    fast = _attend_to_the_past(*heads, per_frame)
    same_with_gradients(fast, F.scaled_dot_product_attention(*heads, attn_mask=mask), heads)
    assert torch.autograd.gradcheck(lambda *heads: _attend_to_the_past(*heads, per_frame), heads)


@pytest.mark.parametrize("frame", [0, 1, 2])
def test_a_frame_is_a_function_of_itself_and_the_past(frame):
    predictor = small_predictor()
    given = inputs()
    out = predictor(*given[:3], GRID, extrinsics=given[3]).unflatten(1, (GRID.t, -1))
    for values, gradient in zip(given, torch.autograd.grad(out[:, frame].sin().sum(), given)):
        by_frame = gradient.unflatten(1, (GRID.t, -1)).abs().amax(dim=(0, *range(2, values.ndim + 1)))
        assert (by_frame[: frame + 1] > 0).all()
        assert not by_frame[frame + 1 :].any()


def test_fewer_frames_are_the_same_first_frames():
    predictor = small_predictor()
    tokens, actions, states, _ = inputs()
    short = predictor(tokens[:, :4], actions[:, :2], states[:, :2], Grid(t=2, h=1, w=2))
    torch.testing.assert_close(short, predictor(tokens, actions, states, GRID)[:, :4])


def test_absent_extrinsics_leave_their_layer_alone():
    predictor = small_predictor()
    tokens, actions, states, _ = inputs()
    other = small_predictor(extrinsics_dim=None)
    missing = other.load_state_dict(predictor.state_dict(), strict=False).unexpected_keys
    assert missing == ["extrinsics_embed.weight", "extrinsics_embed.bias"]
    out = predictor(tokens, actions, states, GRID)
    torch.testing.assert_close(other(tokens, actions, states, GRID), out)


class LargestTensor(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        each = out if isinstance(out, (tuple, list)) else (out,)
        self.numel = max([self.numel, *(part.numel() for part in each if isinstance(part, torch.Tensor))])
        return out


def test_no_mask_of_a_long_clip_is_stored():
    grid = Grid(t=256, h=2, w=3)
    predictor = small_predictor(depth=1).float()
    given = [values.float() for values in inputs(grid, b=1)[:3]]
    with LargestTensor() as largest:
        predictor(*given, grid).sum().backward()
    num_tokens = 256 * 8
    assert largest.numel <= num_tokens * 4 * 24  # the hidden layer of the MLP
    assert largest.numel < num_tokens**2 / 20
    with torch.device("meta"):
        sizes = torch.empty(1, 256 * 256, 32), torch.empty(1, 256, 7), torch.empty(1, 256, 7)
        out = ActionPredictor(encoder_dim=32, embed_dim=24, depth=1, num_heads=2)(
            *sizes, Grid(t=256, h=16, w=16)
        )
    assert out.shape == (1, 65536, 32)


def test_recomputing_changes_nothing():
    predictor, given = small_predictor(), inputs()
    results = []
    for enabled in (False, True):
        recompute_activations(predictor, enabled)
        out = predictor(*given[:3], GRID, extrinsics=given[3])
        results.append((out, *torch.autograd.grad(out.square().sum(), list(predictor.parameters()))))
    assert all(torch.equal(kept, again) for kept, again in zip(*results))


def test_bfloat16_is_close():
    predictor = small_predictor().float()
    tokens, actions, states, _ = (values.float() for values in inputs())
    exact = predictor(tokens, actions, states, GRID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predictor(tokens, actions, states, GRID)
    assert (rough - exact).norm() < 0.03 * exact.norm()
    pure = predictor.bfloat16()(*(values.bfloat16() for values in (tokens, actions, states)), GRID)
    assert (pure - exact).norm() < 0.1 * exact.norm()


def test_config_and_seed():
    predictor = small_predictor(positions=RotaryPositions(pairing="released", trained_grid=(None, 16, 16)))
    again = ActionPredictor(**json.loads(json.dumps(predictor.config)), init_std=0.3, seed=1).double()
    assert again.config == predictor.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in predictor.state_dict().items())
    first, other = (small_predictor(seed=seed).blocks[0].attn.qkv.weight for seed in (1, 2))
    assert not torch.equal(first, other)


def test_published_size():
    with torch.device("meta"):
        predictor = ActionPredictor(encoder_dim=1408)
    assert sum(p.numel() for p in predictor.parameters()) / 1e6 == pytest.approx(305.2, abs=0.05)


class OnGrid(torch.nn.Module):
    def __init__(self, predictor):
        super().__init__()
        self.predictor = predictor

    def forward(self, *inputs):
        return self.predictor(*inputs, GRID)


def test_an_export_equals_the_network():
    network, given = OnGrid(small_predictor()), tuple(inputs()[:3])
    torch.testing.assert_close(torch.export.export(network, given).module()(*given), network(*given))


def test_inputs_that_do_not_fit():
    predictor = small_predictor()
    tokens, actions, states, extrinsics = inputs()
    with pytest.raises(
        ValueError, match=r"tokens must be \[b, 6, d\] on a grid of \(3, 1, 2\), got \(2, 5, 10\)"
    ):
        predictor(tokens[:, :5], actions, states, GRID)
    with pytest.raises(ValueError, match=r"actions must be \[b, 3, 4\], one for each frame, got \(2, 2, 4\)"):
        predictor(tokens, actions[:, :2], states[:, :2], GRID)
    with pytest.raises(ValueError, match=r"states must be \[b, 3, 3\], one for each frame, got \(2, 3, 5\)"):
        predictor(tokens, actions, extrinsics, GRID)
    with pytest.raises(ValueError, match="extrinsics given to a network built with extrinsics_dim=None"):
        small_predictor(extrinsics_dim=None)(tokens, actions, states, GRID, extrinsics)


def test_positions_must_be_rotary():
    with pytest.raises(ValueError, match="positions must be rotary, got 'thw'; use 'rope'"):
        small_predictor(positions="thw")


def test_depth_below_one():
    with pytest.raises(ValueError, match="ActionPredictor: depth must be at least 1, got 0"):
        small_predictor(depth=0)

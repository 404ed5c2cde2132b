"""Every target block on its own, in one pass."""

import json

import pytest
import torch

from tests.nn.slow import place_of, same_with_gradients, slow_block, turn_matrix
from torchjepa.nn import Predictor, RotaryPositions, SharedContextPredictor, sincos_positions
from torchjepa.types import Grid

GRID = Grid(h=3, w=4)


def small_predictor(**changes):
    sizes = {"encoder_dim": 10, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return Predictor(**(sizes | changes)).double()


def inputs(b=2, n_ctx=5, m=3, k=2):
    ids = torch.stack([torch.randperm(GRID.num_tokens) for _ in range(b)])
    targets = ids[:, n_ctx : n_ctx + m * k].reshape(b, m, k)
    context = torch.randn(b, n_ctx, 10, dtype=torch.float64, requires_grad=True)
    return context, ids[:, :n_ctx], targets


def slow_predict(predictor, context, context_ids, target_ids, grid=GRID, mask_index=0, pairing=None):
    """With a pairing the positions are rotary."""
    dim = predictor.config["embed_dim"]
    table = torch.zeros(grid.num_tokens, dim) if pairing else sincos_positions(grid, dim)
    out = torch.empty(*target_ids.shape, 10, dtype=torch.float64)
    for sample, blocks in enumerate(target_ids):
        for index, block in enumerate(blocks):
            seen = predictor.embed(context[sample]) + table[context_ids[sample]]
            tokens = torch.cat([predictor.mask_token[mask_index] + table[block], seen])
            ids = [*block.tolist(), *context_ids[sample].tolist()]
            places = [place_of(i, grid) for i in ids]
            turns = [turn_matrix(place, dim // 2, pairing) for place in places] if pairing else None
            for layer in predictor.blocks:
                tokens = slow_block(layer, tokens, lambda i, j: True, turns)
            out[sample, index] = predictor.proj(predictor.norm(tokens[: len(block)]))
    return out


@pytest.mark.parametrize("depth", [1, 2])
def test_equals_a_loop_over_samples_and_blocks(depth):
    predictor = small_predictor(depth=depth)
    context, context_ids, target_ids = inputs()
    out = predictor(context, context_ids, target_ids, GRID)
    assert out.shape == (2, 3, 2, 10)
    slow = slow_predict(predictor, context, context_ids, target_ids)
    same_with_gradients(out, slow, [context, *predictor.parameters()])


@pytest.mark.parametrize("grid", [GRID, Grid(t=3, h=2, w=2), Grid(w=12)])
@pytest.mark.parametrize("pairing", ["correct", "released"])
def test_rotary_equals_a_loop_with_gradients(pairing, grid):
    rotary = RotaryPositions(pairing=pairing)
    predictor = small_predictor(embed_dim=28, positions=rotary, num_mask_tokens=3, init_std=0.3)
    context, context_ids, target_ids = inputs()
    for mask_index in (0, 2):
        out = predictor(context, context_ids, target_ids, grid, mask_index=mask_index)
        slow = slow_predict(predictor, context, context_ids, target_ids, grid, mask_index, pairing)
        same_with_gradients(out, slow, [context, *predictor.parameters()])


def test_each_mask_token_asks_alone():
    predictor = small_predictor(num_mask_tokens=3)
    assert predictor.mask_token.shape == (3, 1, 8)
    assert len({round(token.sum().item(), 12) for token in predictor.mask_token}) == 3
    predictor(*inputs(), GRID, mask_index=1).sum().backward()
    assert predictor.mask_token.grad.abs().amax(dim=(1, 2)).bool().tolist() == [False, True, False]
    one = small_predictor()
    state = predictor.state_dict()
    one.load_state_dict(state | {"mask_token": state["mask_token"][1:2]})
    batch = inputs()
    torch.testing.assert_close(one(*batch, GRID), predictor(*batch, GRID, mask_index=1))


@pytest.mark.parametrize("index", [-1, 2])
def test_no_such_mask_token(index):
    with pytest.raises(ValueError, match=rf"no mask_index {index} among 2 mask tokens; choose 0 to 1, or"):
        small_predictor(num_mask_tokens=2)(*inputs(), GRID, mask_index=index)
    with pytest.raises(ValueError, match="num_mask_tokens must be at least 1, got 0"):
        small_predictor(num_mask_tokens=0)


@pytest.mark.parametrize("positions", ["rope", {"layout": "wh", "trained_grid": [1, 3, 2]}])
def test_config_of_other_positions_survives_json(positions):
    predictor = small_predictor(embed_dim=12, positions=positions, num_mask_tokens=2)
    again = Predictor(**json.loads(json.dumps(predictor.config))).double()
    assert again.config == predictor.config
    again.load_state_dict(predictor.state_dict())
    batch = inputs()
    assert torch.equal(again(*batch, GRID), predictor(*batch, GRID))


@pytest.mark.parametrize("kind", [Predictor, SharedContextPredictor])
def test_rotary_in_bfloat16_is_close(kind):
    sizes = {"encoder_dim": 10, "embed_dim": 24, "depth": 3, "num_heads": 2, "init_std": 0.3}
    predictor = kind(**sizes, positions="rope")
    context, *ids = inputs()
    exact = predictor(context.float(), *ids, GRID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predictor(context.float(), *ids, GRID)
    assert (rough - exact).norm() < 0.03 * exact.norm()


def test_order_of_the_context_does_not_matter():
    predictor = small_predictor()
    context, context_ids, target_ids = inputs()
    order = torch.randperm(5)
    torch.testing.assert_close(
        predictor(context[:, order], context_ids[:, order], target_ids, GRID),
        predictor(context, context_ids, target_ids, GRID),
    )


def test_a_block_does_not_depend_on_the_others():
    predictor = small_predictor()
    context, context_ids, target_ids = inputs()
    alone = predictor(context, context_ids, target_ids[:, 1:2], GRID)
    torch.testing.assert_close(alone[:, 0], predictor(context, context_ids, target_ids, GRID)[:, 1])


def test_prediction_depends_on_the_place_asked_for():
    predictor = small_predictor()
    context, context_ids, target_ids = inputs(m=1, k=1)
    other = (target_ids + 1) % GRID.num_tokens
    assert (
        predictor(context, context_ids, target_ids, GRID) - predictor(context, context_ids, other, GRID)
    ).abs().max() > 1e-6


def test_config_and_seed():
    predictor = small_predictor(seed=5)
    again = Predictor(**json.loads(json.dumps(predictor.config)), seed=5).double()
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in predictor.state_dict().items())
    assert not torch.equal(predictor.mask_token, small_predictor(seed=6).mask_token)


def test_targets_may_be_wider_than_the_context():
    predictor = small_predictor(target_dim=30, seed=5)
    again = Predictor(**json.loads(json.dumps(predictor.config)), seed=5).double()
    context, context_ids, target_ids = inputs()
    prediction = again(context, context_ids, target_ids, GRID)
    assert prediction.shape == (2, 3, 2, 30)
    assert torch.equal(prediction, predictor(context, context_ids, target_ids, GRID))
    assert (predictor.encoder_dim, predictor.target_dim) == (10, 30)
    with pytest.raises(ValueError, match="target_dim must be at least 1, got 0"):
        small_predictor(target_dim=0)


def test_a_config_from_before_targets_had_a_width_of_their_own():
    old = small_predictor()
    config = {name: value for name, value in old.config.items() if name != "target_dim"}
    new = Predictor(**config).double()
    new.load_state_dict(old.state_dict())
    given = (*inputs(), GRID)
    assert torch.equal(new(*given), old(*given))


def test_videos_need_a_layout_with_time():
    context, context_ids, target_ids = inputs()
    with pytest.raises(ValueError, match="no 't' although the grid has 2 tokens"):
        small_predictor()(context, context_ids, target_ids, Grid(t=2, h=2, w=3))
    video = small_predictor(positions="thw")
    assert video(context, context_ids, target_ids, Grid(t=2, h=2, w=3)).shape == (2, 3, 2, 10)


def test_without_positions_it_knows_nothing_of_the_targets():
    with pytest.raises(ValueError, match=r"positions must not be 'none'.*use 'wh' for images"):
        small_predictor(positions="none")


def test_depth_below_one():
    with pytest.raises(ValueError, match="depth must be at least 1, got 0"):
        small_predictor(depth=0)

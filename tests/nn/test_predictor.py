"""Every target block on its own, in one pass."""

import json

import pytest
import torch

from torchjepa.nn import Predictor, sincos_positions
from torchjepa.types import Grid

GRID = Grid(h=3, w=4)


def small_predictor(**changes):
    sizes = {"encoder_dim": 10, "embed_dim": 8, "depth": 2, "num_heads": 2}
    return Predictor(**(sizes | changes)).double()


def inputs(b=2, n_ctx=5, m=3, k=2):
    ids = torch.stack([torch.randperm(GRID.num_tokens) for _ in range(b)])
    targets = ids[:, n_ctx : n_ctx + m * k].reshape(b, m, k)
    return torch.randn(b, n_ctx, 10, dtype=torch.float64), ids[:, :n_ctx], targets


def slow_predict(predictor, context, context_ids, target_ids):
    table = sincos_positions(GRID, 8)
    out = torch.empty(*target_ids.shape, 10, dtype=torch.float64)
    for sample, blocks in enumerate(target_ids):
        for index, block in enumerate(blocks):
            seen = (
                context[sample] @ predictor.embed.weight.T + predictor.embed.bias + table[context_ids[sample]]
            )
            asked = predictor.mask_token[0] + table[block]
            tokens = torch.cat([asked, seen])[None]
            for layer in predictor.blocks:
                tokens = layer(tokens)
            out[sample, index] = predictor.proj(predictor.norm(tokens[0, : len(block)]))
    return out


@pytest.mark.parametrize("depth", [1, 2])
def test_equals_a_loop_over_samples_and_blocks(depth):
    predictor = small_predictor(depth=depth)
    context, context_ids, target_ids = inputs()
    out = predictor(context, context_ids, target_ids, GRID)
    assert out.shape == (2, 3, 2, 10)
    torch.testing.assert_close(out, slow_predict(predictor, context, context_ids, target_ids))


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

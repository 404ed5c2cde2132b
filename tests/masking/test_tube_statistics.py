"""Where tubes lie, against closed forms over all places; and that time, rows and columns are treated alike."""

from dataclasses import replace

import numpy as np
import pytest

from torchjepa.masking import Grid, TubeMasking, coverage, vjepa_masks
from torchjepa.masking.draws import random_keys
from torchjepa.masking.tube import _plan, _split
from torchjepa.rng import generator

GRID = Grid(t=8, h=14, w=14)
SHORT, LONG = vjepa_masks()


def block_cover(length, side):
    """Share of the inclusive places whose block covers each position of an axis."""
    starts = range(length - side + 1)
    return np.array([np.mean([s <= p < s + side for s in starts]) for p in range(length)])


def chance_of_context(mask, grid):
    """Probability that no block holds a token, [t, h, w]: blocks are independent, sizes included."""
    blocks = _plan(mask, grid).blocks
    plane = np.zeros((grid.h, grid.w))
    for index, (rows, columns) in enumerate(blocks.shapes.sizes.tolist()):
        share = (blocks.shapes.index == index).mean()
        plane += share * np.outer(block_cover(grid.h, rows), block_cover(grid.w, columns))
    time = np.mean([block_cover(grid.t, steps) for steps in blocks.durations.tolist()], axis=0)
    return (1 - time[:, None, None] * plane) ** mask.num_blocks


@pytest.mark.parametrize(
    "mask",
    [SHORT, LONG, TubeMasking(num_blocks=3, spatial_scale=(0.1, 0.4), temporal_scale=(0.2, 0.7))],
    ids=["short", "long", "brief"],
)
def test_drawn_pools_are_the_closed_form(mask):
    grid = Grid(t=5, h=10, w=13)
    plan, stream = _plan(mask, grid), generator(0, "pools")
    pools = plan.blocks.over_time(plan.blocks.draw_pools(20_000, stream)).reshape(-1, *grid.shape)
    # 20,000 draws: a standard error of 0.0035 at most, 650 positions.
    np.testing.assert_allclose(pools.mean(0), chance_of_context(mask, grid), atol=0.016)


@pytest.mark.parametrize("mask", vjepa_masks(), ids=["short", "long"])
def test_pools_of_whole_tubes_are_the_same_in_every_frame(mask):
    # So that, with trimming blind to position, P(context) is exactly flat over time.
    pools = _plan(mask, GRID).draw_enough(40, generator(0)).reshape(40, GRID.t, -1)
    assert bool((pools == pools[:, :1]).all())


@pytest.mark.parametrize("mask", vjepa_masks(), ids=["short", "long"])
def test_every_frame_is_seen_and_predicted_equally_often(mask):
    maps = coverage(mask, GRID, 2_400, generator(0, "flat"), batch_size=24)
    for shares, length in (
        (maps.context_over_time, mask.context_length(GRID)),
        (maps.target_over_time, mask.target_length(GRID)),
    ):
        # What trimming takes from a frame varies by less than 0.02 a sample: a standard error of 0.0004.
        assert (shares - length / GRID.num_tokens).abs().max() < 0.003


def test_the_flatness_test_sees_what_the_published_cut_does():
    shares = coverage(TubeMasking(legacy=True), GRID, 2_400, generator(0), batch_size=24).context_over_time
    assert shares[0] - shares[-1] > 0.3


@pytest.mark.parametrize("grid", [GRID, Grid(t=2, h=9, w=16)])
@pytest.mark.parametrize(
    "mask", [SHORT, LONG, replace(SHORT, temporal_scale=(0.5, 0.5))], ids=["short", "long", "brief"]
)
def test_coverage_is_symmetric_under_the_flips_of_the_grid(mask, grid):
    maps = coverage(mask, grid, 12_000, generator(0, "flips"), batch_size=200)
    for name in ("context", "target"):
        share = getattr(maps, name)
        for axes in ((0,), (1,), (2,), (1, 2)):
            # The difference of two frequencies over 12,000 samples has a standard error below 0.0065.
            gap = (share - share.flip(axes)).abs().max()
            assert gap < 0.035, f"{name} differs from its flip along {axes} by {gap:.3f}"


@pytest.mark.parametrize("mask", vjepa_masks(), ids=["short", "long"])
def test_blocks_keep_their_scale_and_draws_of_use_their_mean(mask):
    plan = _plan(mask, GRID)
    sizes = plan.blocks.shapes.draw(20_000, generator(0)).prod(1)
    assert sizes.mean() / (GRID.h * GRID.w) == pytest.approx(mask.spatial_scale[0], rel=0.03)
    used = plan.draw_enough(4_000, generator(1)).mean()
    assert used == pytest.approx(chance_of_context(mask, GRID).mean(), abs=0.01)


def test_statistics_do_not_depend_on_the_batch_size():
    one = coverage(SHORT, Grid(t=2, h=10, w=10), 3_000, generator(0), batch_size=1)
    many = coverage(SHORT, Grid(t=2, h=10, w=10), 20_000, generator(1), batch_size=500)
    # Row means over at least 3,000 samples.
    assert (one.context.mean(2) - many.context.mean(2)).abs().max() < 0.025
    assert (one.target.mean(2) - many.target.mean(2)).abs().max() < 0.025


@pytest.mark.parametrize("mask", vjepa_masks(), ids=["short", "long"])
def test_trimming_is_blind_to_position(mask):
    # Of a side with a tokens, each is kept with probability length / a: compared by step, row and column.
    plan, stream = _plan(mask, GRID), generator(0, "trim")
    pools = plan.draw_enough(3_000, stream)
    sides = _split(mask, pools, plan.lengths, random_keys(pools.shape, stream))
    for pool, ids in zip((pools, ~pools), sides, strict=True):
        kept = np.zeros(pool.shape)
        np.put_along_axis(kept, ids, 1.0, axis=1)
        surprise = (kept - pool * (ids.shape[1] / pool.sum(1, keepdims=True))).mean(0).reshape(GRID.shape)
        for axes in ((1, 2), (0, 2), (0, 1)):
            # At least 3,000 x 112 tokens of variance below 0.03: a standard error of 0.0003.
            assert np.abs(surprise.mean(axes)).max() < 0.0015

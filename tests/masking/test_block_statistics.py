"""The figures of the design on 14 x 14, against dumb loops and closed forms over many draws."""

import functools

import numpy as np
import pytest
import torch

from torchjepa.masking import Grid, MultiBlockMasking, coverage
from torchjepa.masking.block import _plan, draw_blocks
from torchjepa.rng import generator

GRID = Grid(h=14, w=14)
NUM_BATCHES = 400


@functools.cache
def shares(batch_size, num_batches=NUM_BATCHES):
    """Share of the grid in one target block and in the union of the blocks, one row a batch."""
    stream = generator(0, "shares", batch_size)
    rows = []
    for _ in range(num_batches):
        masks = MultiBlockMasking()(GRID, batch_size, stream)
        union = np.mean([len(set(sample.flatten().tolist())) for sample in masks.targets])
        rows.append((masks.targets.shape[2] / GRID.num_tokens, union / GRID.num_tokens))
    return np.array(rows)


def test_a_target_block_covers_15_to_20_percent():
    block, _ = shares(16).T
    assert block.min() >= 0.15
    assert block.max() <= 0.20
    assert 0.168 < block.mean() < 0.178
    assert set((block * GRID.num_tokens).round()) == {30, 35, 36}


def test_the_union_of_four_covers_about_48_percent():
    _, union = shares(16).T
    # Standard error 0.002. With the last row and column out of reach it would be 0.44.
    assert abs(union.mean() - 0.474) < 0.010


def test_the_untrimmed_context_covers_about_40_percent():
    plan = _plan(MultiBlockMasking(), GRID)
    stream = generator(0, "untrimmed")
    visible = [draw_blocks(plan, plan.target_shapes.draw(1, stream)[0], 16, stream)[1] for _ in range(1000)]
    length = np.concatenate(visible).sum(1)
    assert abs(length.mean() / GRID.num_tokens - 0.41) < 0.01
    # One draw in 20 at most is thrown away under the least favourable block size.
    assert (length < plan.context_length).mean() < 0.05


def block_cover(length, side):
    """Share of the inclusive start positions whose block covers each position of an axis."""
    starts = range(length - side + 1)
    return np.array([np.mean([s <= p < s + side for s in starts]) for p in range(length)])


def test_target_coverage_is_the_closed_form():
    # With overlap allowed nothing is redrawn, and a position is hidden with 1 - (1 - rows * columns)^m.
    mask, grid = MultiBlockMasking(allow_overlap=True), Grid(h=10, w=13)
    shapes = _plan(mask, grid).target_shapes
    expected = np.zeros((grid.h, grid.w))
    for index, (rows, columns) in enumerate(shapes.sizes.tolist()):
        cover = np.outer(block_cover(grid.h, rows), block_cover(grid.w, columns))
        expected += (shapes.index == index).mean() * (1 - (1 - cover) ** mask.num_targets)
    measured = coverage(mask, grid, 30_000, generator(0), batch_size=8).target[0].numpy()
    # 30,000 samples: standard error 0.003, somewhat more for sharing a size in eights.
    np.testing.assert_allclose(measured, expected, atol=0.02)


@pytest.mark.parametrize("grid", [GRID, Grid(h=9, w=16)])
def test_coverage_is_symmetric_under_the_flips_of_the_grid(grid):
    maps = coverage(MultiBlockMasking(), grid, 40_000, generator(0, "flips"), batch_size=64)
    for name in ("context", "target"):
        seen = getattr(maps, name)[0]
        for axes in ((0,), (1,), (0, 1)):
            # The difference of two frequencies over 40,000 samples has a standard error below 0.005; were
            # the last row and column left out, it would be 0.1 and more.
            gap = (seen - seen.flip(axes)).abs().max()
            assert gap < 0.025, f"{name} differs from its flip along {axes} by {gap:.3f}"
    assert maps.target[0, [0, -1]].min() > 0.03
    assert maps.context.sum().item() == pytest.approx(MultiBlockMasking().context_length(grid), abs=1e-6)


def test_the_flip_test_sees_positions_that_leave_out_the_last_row():
    maps = coverage(MultiBlockMasking(legacy=True), GRID, 6_400, generator(0, "flips"), batch_size=64)
    for seen in (maps.context[0], maps.target[0]):
        assert (seen - seen.flip(0)).abs().max() > 0.1


def test_statistics_do_not_depend_on_the_batch_size():
    maps = {
        size: coverage(MultiBlockMasking(), GRID, samples, generator(0, "size", size), batch_size=size)
        for size, samples in ((1, 6_000), (16, 20_000), (128, 128 * 300))
    }
    for size in (16, 128):
        # Row means over at least 6,000 samples and 300 block sizes.
        assert (maps[size].context.mean(2) - maps[1].context.mean(2)).abs().max() < 0.02
        assert (maps[size].target.mean(2) - maps[1].target.mean(2)).abs().max() < 0.03
    unions = [shares(size, num)[:, 1].mean() for size, num in ((1, 4000), (16, NUM_BATCHES), (128, 200))]
    assert np.ptp(unions) < 0.012


def test_trimming_is_blind_to_position():
    # Given the visible tokens each is kept with the same chance: kept / visible is flat over the grid.
    plan = _plan(MultiBlockMasking(), GRID)
    visible = np.zeros(GRID.num_tokens)
    stream = generator(0, "trim")
    for _ in range(600):
        visible += draw_blocks(plan, plan.target_shapes.draw(1, stream)[0], 32, stream)[1].mean(0) / 600
    kept = coverage(MultiBlockMasking(), GRID, 600 * 32, stream, batch_size=32).context.flatten().numpy()
    ratio = (kept / visible).reshape(14, 14)
    assert abs(ratio[:4].mean() - ratio[-4:].mean()) < 0.02
    assert abs(ratio[5:9, 5:9].mean() - ratio[:2].mean()) < 0.12


def test_one_dimensional_blocks_keep_their_scale():
    masks = [MultiBlockMasking()(Grid(w=100), 4, generator(0, step)) for step in range(100)]
    assert all(15 <= drawn.targets.shape[2] <= 20 for drawn in masks)
    assert len({drawn.targets.shape[2] for drawn in masks}) > 3
    assert bool((masks[0].targets.diff() == 1).all())


def test_scale_and_aspect_are_independent():
    # One draw for both (the published sampler) makes large blocks tall: a correlation of 1.
    shapes = _plan(MultiBlockMasking(target_scale=(0.05, 0.3)), Grid(h=100, w=100)).target_shapes
    rows, columns = shapes.draw(20_000, generator(0)).T
    correlation = np.corrcoef(rows * columns, rows / columns)[0, 1]
    assert abs(correlation) < 0.05
    assert torch.tensor(rows / columns).mean() == pytest.approx(1.125, abs=0.01)

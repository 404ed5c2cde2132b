"""The published V-JEPA sampler's distribution: its golden block sizes and the figures measured on it."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchjepa.masking import Grid, TubeMasking, coverage, legacy, vjepa_masks
from torchjepa.rng import generator
from torchjepa.testing.check_mask import check_mask

GRID = Grid(t=8, h=16, w=16)
SHORT, LONG = vjepa_masks(legacy=True)


def box_of(ids, grid):
    """Steps, rows and columns of the box around some token ids."""
    axes = ids // (grid.h * grid.w), ids // grid.w % grid.h, ids % grid.w
    return tuple(int(axis.max() - axis.min() + 1) for axis in axes)


@pytest.mark.parametrize(
    ("scale", "sizes"),
    [
        (0.15, [(8, 6, 7), (8, 6, 6), (8, 7, 6), (8, 6, 6)]),
        (0.7, [(8, 12, 15), (8, 14, 13), (8, 15, 12), (8, 13, 14)]),
    ],
)
def test_golden_block_sizes(scale, sizes):
    mask = TubeMasking(num_blocks=1, spatial_scale=(scale, scale), legacy=True)
    for seed, size in enumerate(sizes):
        targets = mask(GRID, 3, torch.Generator().manual_seed(seed)).targets[:, 0]
        assert {box_of(block, GRID) for block in targets} == {size}


@pytest.mark.parametrize(
    ("mask", "grid", "batch_size", "lengths", "over_time"),
    [
        (SHORT, GRID, 24, (0.243, 0.480), [0.39, 0.39, 0.39, 0.36, 0.26, 0.14, 0.05, 0.02]),
        (LONG, GRID, 24, (0.064, 0.699), [0.19, 0.15, 0.07, 0.04, 0.02, 0.01, 0.007, 0.006]),
        (SHORT, Grid(t=32, h=16, w=16), 12, (0.258, 0.489), {0: 0.39, 31: 0.04}),
        (LONG, Grid(t=32, h=16, w=16), 12, (0.093, 0.699), {0: 0.20, 31: 0.014}),
        (SHORT, GRID, 3, None, {0: 0.38, 7: 0.14}),
    ],
    ids=["short 16f", "long 16f", "short 64f", "long 64f", "batch 3"],
)
def test_the_measured_lengths_and_the_loss_of_late_frames(mask, grid, batch_size, lengths, over_time):
    maps = coverage(mask, grid, 200 * batch_size, generator(0), batch_size=batch_size)
    # The size varies between batches only, by 0.03 to 0.05 of the tokens. Over our 200 batches that is a standard
    # error of 0.003; the published figures come from fewer.
    if lengths is not None:
        assert float(maps.context.mean()) == pytest.approx(lengths[0], abs=0.02)
        assert float(maps.target.mean()) == pytest.approx(lengths[1], abs=0.02)
    for step, share in over_time.items() if isinstance(over_time, dict) else enumerate(over_time):
        assert float(maps.context_over_time[step]) == pytest.approx(share, abs=0.025)


def cover(length, side):
    """Share of the inclusive places whose block covers each position of an axis."""
    starts = range(length - side + 1)
    return np.array([np.mean([s <= p < s + side for s in starts]) for p in range(length)])


@pytest.mark.parametrize(("mask", "share"), [(SHORT, 0.380), (LONG, 0.187)], ids=["short", "long"])
def test_the_context_before_the_cut(mask, share):
    # Closed form: over all aspects, the chance that none of the blocks of one size covers a token. (Measured on a few
    # batches of the published code: 0.396 and 0.189.)
    area, expected = int(256 * mask.spatial_scale[0]), []
    for u in (np.arange(500) + 0.5) / 500:
        aspect = 0.75 + 0.75 * u
        rows, columns = (min(round(math.sqrt(side)), 16) for side in (area * aspect, area / aspect))
        expected.append(((1 - np.outer(cover(16, rows), cover(16, columns))) ** mask.num_blocks).mean())
    assert np.mean(expected) == pytest.approx(share, abs=0.001)
    stream = generator(0, "uncut")
    pools = [legacy.published_tubes(mask, GRID, 8, stream).mean() for _ in range(500)]
    # 500 sizes, which differ by 0.02, and 4,000 samples, by 0.075: a standard error of 0.0015.
    assert np.mean(pools) == pytest.approx(np.mean(expected), abs=0.006)


def test_both_sides_are_cut_from_the_end():
    masks = SHORT(GRID, 16, generator(4))
    pools = legacy.published_tubes(SHORT, GRID, 16, generator(4))
    for side, ids in ((pools, masks.context), (~pools, masks.targets[:, 0])):
        whole = [row.nonzero()[0].tolist() for row in side]
        assert ids.tolist() == [row[: min(map(len, whole))] for row in whole]


@pytest.mark.parametrize("surplus", ["target", "context"])
@pytest.mark.parametrize("inverted", [False, True])
def test_full_complements_leave_no_token_out(surplus, inverted):
    masks = replace(SHORT, surplus=surplus, inverted=inverted)(GRID, 6, generator(0))
    everything = torch.cat([masks.context, masks.targets[:, 0]], dim=1).sort().values
    assert torch.equal(everything, torch.arange(GRID.num_tokens).expand(6, -1))


def test_max_context_cuts_before_the_complement():
    masks = replace(SHORT, surplus="target", max_context=50, max_context_time=0.5)(GRID, 6, generator(0))
    assert masks.context.shape == (6, 50)
    assert masks.targets.shape == (6, 1, GRID.num_tokens - 50)


def test_the_contract_holds_but_for_the_batch_size():
    for mask in (SHORT, LONG):
        check_mask(mask, [Grid(t=4, h=10, w=12)], num_draws=16, batch_dependent=True)
        with pytest.raises(AssertionError, match="the task depends on the batch size"):
            check_mask(mask, [Grid(t=4, h=10, w=12)], batch_sizes=(1, 64), num_draws=32)


def test_samples_without_context_are_drawn_again():
    # Two blocks of 3 x 3 in a frame of 3 x 4 hide all of it half of the time.
    mask = TubeMasking(num_blocks=2, spatial_scale=(0.75, 0.75), aspect=(1, 1), legacy=True)
    masks = mask(Grid(t=2, h=3, w=4), 100, generator(0))
    assert masks.context.shape == (100, 6)
    assert masks.targets.shape == (100, 1, 18)


def test_a_loop_that_would_not_end_is_refused():
    mask = TubeMasking(num_blocks=1, spatial_scale=(1.0, 1.0), aspect=(1, 1), legacy=True)
    with pytest.raises(ValueError, match=r"1 blocks of 2 x 4 x 4 tokens .* in 1000 draws\. Lower num_blocks"):
        mask(Grid(t=2, h=4, w=4), 2, generator(0))


def test_the_lengths_are_the_batch_s():
    for length in (SHORT.context_length, SHORT.target_length):
        with pytest.raises(ValueError, match="depend on the batch"):
            length(GRID)

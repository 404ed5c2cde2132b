"""The published sampler's distribution: its golden block sizes and the figures measured on it."""

from collections import Counter

import pytest
import torch

from torchjepa.masking import Grid, MultiBlockMasking, coverage
from torchjepa.rng import generator
from torchjepa.testing.check_mask import check_mask

LEGACY = MultiBlockMasking(legacy=True)
GRID = Grid(h=16, w=16)


def size_of(ids, grid):
    """Rows and columns of the rectangle around some token ids."""
    row, column = ids // grid.w, ids % grid.w
    return int(row.max() - row.min() + 1), int(column.max() - column.min() + 1)


@pytest.mark.parametrize(("seed", "size"), [(0, (6, 6)), (1, (7, 5)), (2, (7, 5)), (3, (5, 6))])
def test_golden_target_sizes_at_224_with_patch_16(seed, size):
    grid = Grid(h=14, w=14)
    targets = LEGACY(grid, 4, torch.Generator().manual_seed(seed)).targets
    assert {size_of(block, grid) for block in targets.flatten(0, 1)} == {size}


def test_the_six_target_sizes_and_their_frequencies():
    published = {(5, 7): 0.05, (6, 6): 0.02, (6, 7): 0.27, (7, 6): 0.29, (8, 6): 0.30, (9, 6): 0.07}
    stream = generator(0)
    counts = Counter(size_of(LEGACY(GRID, 1, stream).targets[0, 0], GRID) for _ in range(4000))
    assert set(counts) == set(published)
    for size, share in published.items():
        assert counts[size] / 4000 == pytest.approx(share, abs=0.03)


def test_the_context_block_is_all_but_the_last_row_and_column():
    context = MultiBlockMasking(legacy=True, allow_overlap=True)(GRID, 3, generator(0)).context
    row, column = torch.meshgrid(torch.arange(16), torch.arange(16), indexing="ij")
    expected = (row * 16 + column)[:15, :15].flatten()
    assert torch.equal(context, expected.expand(3, -1))


@pytest.mark.parametrize(("batch_size", "length", "draws"), [(1, 111, 3000), (16, 82, 400), (128, 68, 200)])
def test_the_context_shrinks_as_the_batch_grows(batch_size, length, draws):
    stream = generator(0, batch_size)
    lengths = [LEGACY(GRID, batch_size, stream).context.shape[1] for _ in range(draws)]
    assert sum(lengths) / draws == pytest.approx(length, abs=2.0)


@pytest.mark.parametrize(
    ("batch_size", "num_batches", "rows"),
    [
        (1, 5000, {0: 0.77, 7: 0.25, 14: 0.78, 15: 0.0}),
        (128, 200, {0: 0.78, 7: 0.19, 12: 0.11, 13: 0.05, 14: 0.015, 15: 0.0}),
    ],
)
def test_row_visibility_is_the_published_one(batch_size, num_batches, rows):
    maps = coverage(LEGACY, GRID, num_batches * batch_size, generator(0, "rows"), batch_size=batch_size)
    seen = maps.context[0].mean(1)
    for row, share in rows.items():
        assert seen[row] == pytest.approx(share, abs=0.022)
    assert maps.target[0, -1].max() == maps.target[0, :, -1].max() == 0


def test_the_union_of_four_covers_44_percent_at_14_x_14():
    maps = coverage(LEGACY, Grid(h=14, w=14), 8000, generator(0), batch_size=4)
    assert maps.target.mean() == pytest.approx(0.444, abs=0.008)


def test_the_contract_holds_but_for_the_batch_size():
    check_mask(LEGACY, [GRID, Grid(h=14, w=20)], batch_dependent=True)
    with pytest.raises(AssertionError, match="the task depends on the batch size"):
        check_mask(LEGACY, [GRID])


def test_the_context_is_cut_from_the_end():
    # Same seed, same blocks: the shortest sample of the batch is whole, the others lose their last ids.
    whole = MultiBlockMasking(legacy=True)(GRID, 16, generator(4))
    hidden = [set(sample.flatten().tolist()) for sample in whole.targets]
    block = [row * 16 + column for row in range(15) for column in range(15)]
    uncut = [[token for token in block if token not in sample] for sample in hidden]
    shortest = min(map(len, uncut))
    assert whole.context.tolist() == [sample[:shortest] for sample in uncut]


def test_exclusion_gives_way_where_nothing_is_left():
    # Blocks of 6 x 6 in 7 x 7 share 25 tokens at least, so no four of them leave 25 of the 36 outside.
    mask = MultiBlockMasking(legacy=True, target_scale=(0.74, 0.74), target_aspect=(1, 1), min_context=25)
    masks = mask(Grid(h=7, w=7), 50, generator(0))
    assert masks.targets.shape == (50, 4, 36)
    assert masks.context.shape == (50, 36)


def test_the_last_target_gives_way_first():
    # A 6 x 6 context block less one block of 4 x 4 has 20 tokens, less two of them mostly fewer than 16.
    mask = MultiBlockMasking(
        legacy=True, num_targets=2, target_scale=(0.3, 0.3), target_aspect=(1, 1), min_context=16
    )
    masks = mask(Grid(h=7, w=7), 200, generator(0))
    overlaps = (masks.context[:, None, :, None] == masks.targets[:, :, None, :]).any(-1).sum(-1)
    assert overlaps[:, 0].max() == 0
    assert overlaps[:, 1].max() > 0


@pytest.mark.parametrize("grid", [Grid(h=2, w=2), Grid(w=30), Grid(h=5, w=5), Grid()])
def test_grids_on_which_the_published_loop_never_ends_are_refused(grid):
    with pytest.raises(ValueError, match=r"is below min_context=11\. Lower min_context, use a finer grid"):
        LEGACY(grid, 2, generator(0))


def test_a_context_block_that_is_too_small_is_named():
    mask = MultiBlockMasking(legacy=True, context_scale=(0.02, 0.02))
    with pytest.raises(ValueError, match="a context block of 2 x 2 tokens on a 16 x 16 grid"):
        mask(GRID, 2, generator(0))

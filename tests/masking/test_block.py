import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.masking import Grid, Masks, MultiBlockMasking, block
from torchjepa.rng import generator
from torchjepa.testing.check_mask import check_mask


def ranges(low, high):
    bound = st.floats(low, high)
    return st.tuples(bound, bound).map(lambda pair: tuple(sorted(pair)))


configurations = st.builds(
    MultiBlockMasking,
    num_targets=st.integers(1, 6),
    target_scale=ranges(0.01, 1.0),
    target_aspect=ranges(0.2, 5.0),
    context_scale=ranges(0.05, 1.0),
    context_aspect=ranges(0.2, 5.0),
    min_context=st.none() | st.integers(1, 30),
    allow_overlap=st.booleans(),
    max_target_lengths=st.none() | st.integers(1, 4),
)
images = st.builds(Grid, h=st.integers(1, 20), w=st.integers(1, 20))


@settings(max_examples=40, deadline=None)
@given(grid=images)
def test_defaults_keep_the_contract_on_any_grid_of_three_tokens(grid):
    if grid.num_tokens >= 3:
        check_mask(MultiBlockMasking(), [grid], batch_sizes=(1, 7), num_draws=12)
    else:
        with pytest.raises(ValueError, match="MultiBlockMasking: on a"):
            MultiBlockMasking()(grid, 1, generator(0))


@settings(max_examples=100, deadline=None)
@given(mask=configurations, grid=images)
def test_any_configuration_keeps_the_contract_or_says_why_not(mask, grid):
    try:
        masks = mask(grid, 5, generator(1))
    except ValueError as error:
        if "context tokens in only" in str(error):
            return
        raise
    assert masks.context.shape == (5, mask.context_length(grid))
    assert masks.targets.shape[:2] == (5, mask.num_targets)
    for ids in (masks.context, masks.targets):
        assert ids.dtype == torch.int64
        assert 0 <= int(ids.min()) <= int(ids.max()) < grid.num_tokens
        assert bool((ids.diff() > 0).all())
    if not mask.allow_overlap:
        for context, targets in zip(masks.context.tolist(), masks.targets.flatten(1).tolist()):
            assert not set(context) & set(targets)
    again = mask(grid, 5, generator(1))
    assert torch.equal(again.context, masks.context)
    assert torch.equal(again.targets, masks.targets)
    assert mask(grid, 1, generator(2)).context.shape[1] == mask.context_length(grid)
    assert masks.context.shape[1] >= (mask.min_context or 1)


@pytest.mark.parametrize("grid", [Grid(h=14, w=14), Grid(h=7, w=12), Grid(h=3, w=20), Grid(w=40), Grid(h=40)])
def test_contract_on_square_oblong_and_one_dimensional_grids(grid):
    check_mask(MultiBlockMasking(), [grid], batch_sizes=(1, 16, 128))


def test_two_by_two_gives_valid_masks():
    masks = MultiBlockMasking()(Grid(h=2, w=2), 64, generator(0))
    assert masks.context.shape == (64, 1)
    assert masks.targets.shape == (64, 4, 1)
    assert not bool((masks.context[:, None] == masks.targets).any())


def test_every_target_is_a_rectangle_of_one_size():
    mask, grid = MultiBlockMasking(), Grid(h=14, w=11)
    for step in range(20):
        targets = mask(grid, 8, generator(0, "mask", step)).targets.flatten(0, 1)
        row, column = targets // grid.w, targets % grid.w
        rows = row.amax(1) - row.amin(1) + 1
        columns = column.amax(1) - column.amin(1) + 1
        assert bool((rows * columns == targets.shape[1]).all())
        assert rows.unique().numel() == columns.unique().numel() == 1


def test_rows_of_the_global_batch_can_be_cut_out():
    masks = MultiBlockMasking()(Grid(h=8, w=8), 12, generator(0, "mask", 3))
    assert isinstance(masks[4:8], Masks)
    assert torch.equal(masks[4:8].context, masks.context[4:8])


def test_min_context_lengthens_the_context():
    grid = Grid(h=14, w=14)
    default = MultiBlockMasking().context_length(grid)
    longer = MultiBlockMasking(min_context=default + 10)
    assert longer.context_length(grid) == default + 10
    check_mask(longer, [grid])
    assert MultiBlockMasking(min_context=default - 10).context_length(grid) == default


def test_context_length_is_part_of_a_run():
    # Checkpointed runs and compiled graphs rely on these; a change of the calibration is a breaking change.
    lengths = [MultiBlockMasking().context_length(Grid(h=side, w=side)) for side in (8, 14, 16)]
    assert lengths == [21, 55, 72]


def test_a_sample_that_never_gets_enough_context_still_gets_a_valid_mask(monkeypatch):
    mask, grid = MultiBlockMasking(min_context=72), Grid(h=14, w=14)
    mask.context_length(grid)
    monkeypatch.setattr(block, "_MAX_REDRAWS", 0)
    masks = mask(grid, 64, generator(0))
    one_place = (masks.targets == masks.targets[:, :1]).flatten(1).all(1)
    assert 5 < int(one_place.sum()) < 64
    check_mask(mask, [grid])


def test_overlap_leaves_targets_in_the_context():
    mask, grid = MultiBlockMasking(allow_overlap=True), Grid(h=14, w=14)
    assert mask.context_length(grid) == 13 * 13
    check_mask(mask, [grid], allow_overlap=True)
    with pytest.raises(AssertionError, match="both in the context and in a target block"):
        check_mask(mask, [grid])


@pytest.mark.parametrize(("side", "lengths"), [(14, 3), (16, 4), (32, 14), (56, 36)])
def test_target_lengths_can_be_bounded(side, lengths):
    grid, bounded = Grid(h=side, w=side), MultiBlockMasking(max_target_lengths=2)
    for mask, most in ((MultiBlockMasking(), lengths), (bounded, 2)):
        areas = block._plan(mask, grid).target_shapes.sizes.prod(axis=1)
        assert len(set(areas.tolist())) == most
        drawn = {mask(grid, 1, generator(0, "k", step)).targets.shape[2] for step in range(40)}
        assert drawn <= set(areas.tolist())
    assert len(drawn) == 2
    check_mask(bounded, [grid], batch_sizes=(1, 7), num_draws=8)


def test_a_bound_that_does_not_bind_changes_nothing():
    grid = Grid(h=14, w=14)
    free = MultiBlockMasking()(grid, 4, generator(5))
    bounded = MultiBlockMasking(max_target_lengths=3)(grid, 4, generator(5))
    assert torch.equal(free.context, bounded.context)
    assert torch.equal(free.targets, bounded.targets)


def test_the_published_distribution_cannot_be_bounded():
    with pytest.raises(ValueError, match=r"max_target_lengths=4 would change the published distribution"):
        MultiBlockMasking(max_target_lengths=4, legacy=True)


def test_list_fields_from_a_configuration_file_are_taken():
    mask = MultiBlockMasking(target_scale=[0.1, 0.2], context_aspect=[1, 1])  # type: ignore[arg-type]
    assert mask == MultiBlockMasking(target_scale=(0.1, 0.2))
    assert MultiBlockMasking(**dataclasses.asdict(mask)) == mask
    check_mask(mask, [Grid(h=10, w=10)])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_targets": 0}, "num_targets must be an integer of at least 1, got 0"),
        ({"num_targets": 2.0}, "num_targets must be an integer of at least 1, got 2.0"),
        ({"min_context": 0}, "min_context must be an integer of at least 1, got 0"),
        ({"max_target_lengths": 0}, "max_target_lengths must be an integer of at least 1, got 0"),
        ({"target_scale": (0.2, 0.1)}, r"target_scale must be \(low, high\) with 0 < low <= high <= 1"),
        ({"context_scale": (0.5, 1.5)}, r"context_scale must be .* got \(0.5, 1.5\)"),
        ({"target_aspect": (0, 1)}, r"target_aspect must be \(low, high\) with 0 < low <= high, got"),
        ({"context_aspect": 1.0}, "context_aspect must be .* got 1.0"),
        ({"context_aspect": (1.0, float("inf"))}, "context_aspect must be"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        MultiBlockMasking(**fields)


def test_video_grids_are_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"got a grid with t=8\. Use TubeMasking"):
        MultiBlockMasking()(Grid(t=8, h=14, w=14), 4, generator(0))


@pytest.mark.parametrize("batch_size", [0, -1, 2.0, True])
def test_wrong_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        MultiBlockMasking()(Grid(h=8, w=8), batch_size, generator(0))


@pytest.mark.parametrize(
    ("mask", "grid"),
    [
        (MultiBlockMasking(), Grid()),
        (MultiBlockMasking(target_scale=(0.9, 1.0)), Grid(h=14, w=14)),
        (MultiBlockMasking(num_targets=20, target_scale=(0.4, 0.5), min_context=20), Grid(h=14, w=14)),
        (MultiBlockMasking(min_context=150), Grid(h=14, w=14)),
        (MultiBlockMasking(context_scale=(0.01, 0.02)), Grid(h=8, w=8)),
    ],
)
def test_ratios_that_leave_nothing_are_refused_with_the_reason(mask, grid):
    with pytest.raises(ValueError, match=r"context tokens in only .* are needed\. Lower num_targets"):
        mask(grid, 4, generator(0))


def test_the_legacy_context_length_is_the_batch_s():
    with pytest.raises(ValueError, match="depends on the batch"):
        MultiBlockMasking(legacy=True).context_length(Grid(h=14, w=14))


def test_nothing_is_drawn_from_the_global_generators():
    torch.manual_seed(0)
    np.random.seed(0)
    first = MultiBlockMasking()(Grid(h=9, w=9), 4, generator(5))
    torch.manual_seed(1)
    np.random.seed(1)
    second = MultiBlockMasking()(Grid(h=9, w=9), 4, generator(5))
    assert torch.equal(first.context, second.context)

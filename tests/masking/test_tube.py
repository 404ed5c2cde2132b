import dataclasses
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.masking import Grid, TubeMasking, tube, vjepa_masks
from torchjepa.rng import generator
from torchjepa.testing.check_mask import check_mask

CLIP = Grid(t=8, h=14, w=14)
SHORT, LONG = vjepa_masks()
OPTIONS = [
    {},
    {"surplus": "target"},
    {"surplus": "context"},
    {"inverted": True},
    {"inverted": True, "surplus": "target"},
    {"max_context_time": 0.5},
    {"max_context_time": 0.4, "inverted": True},
    {"temporal_scale": (0.25, 0.75)},
    {"temporal_scale": (0.5, 0.5), "max_context_time": 0.5, "surplus": "target"},
    {"max_context": 30},
]


def ranges(low, high):
    bound = st.floats(low, high)
    return st.tuples(bound, bound).map(lambda pair: tuple(sorted(pair)))


configurations = st.builds(
    TubeMasking,
    num_blocks=st.integers(1, 8),
    spatial_scale=ranges(0.01, 1.0),
    temporal_scale=ranges(0.01, 1.0),
    aspect=ranges(0.2, 5.0),
    max_context_time=st.floats(0.01, 1.0),
    max_context=st.none() | st.integers(1, 30),
    surplus=st.sampled_from(["drop", "target"]),
    inverted=st.booleans(),
)
clips = st.builds(Grid, t=st.integers(1, 6), h=st.integers(1, 12), w=st.integers(1, 12))


@settings(max_examples=60, deadline=None)
@given(mask=configurations, grid=clips)
def test_any_configuration_keeps_the_contract_or_says_why_not(mask, grid):
    try:
        masks = mask(grid, 5, generator(1))
    except ValueError as error:
        if "a context and targets in only" in str(error):
            return
        raise
    assert masks.context.shape == (5, mask.context_length(grid))
    assert masks.targets.shape == (5, 1, mask.target_length(grid))
    for ids in (masks.context, masks.targets):
        assert ids.dtype == torch.int64
        assert 0 <= int(ids.min()) <= int(ids.max()) < grid.num_tokens
        assert bool((ids.diff() > 0).all())
    for context, targets in zip(masks.context.tolist(), masks.targets[:, 0].tolist()):
        assert not set(context) & set(targets)
    assert masks.context.max() < mask.num_context_steps(grid) * grid.h * grid.w
    again, alone = mask(grid, 5, generator(1)), mask(grid, 1, generator(2))
    assert torch.equal(again.context, masks.context)
    assert torch.equal(again.targets, masks.targets)
    assert alone.context.shape[1:] == masks.context.shape[1:]
    assert alone.targets.shape[1:] == masks.targets.shape[1:]


@pytest.mark.parametrize("mask", vjepa_masks(), ids=["short", "long"])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_contract_with_every_option(mask, options):
    grids = [Grid(t=4, h=7, w=9), Grid(h=8, w=8), Grid(t=3, w=20)]
    check_mask(replace(mask, **options), grids, batch_sizes=(1, 30), num_draws=6)


def test_lengths_are_part_of_a_run():
    # Checkpointed runs and compiled graphs rely on these; a change of the calibration is a breaking change.
    lengths = [(mask.context_length(CLIP), mask.target_length(CLIP)) for mask in vjepa_masks()]
    assert lengths == [(520, 952), (232, 1248)]


@pytest.mark.parametrize(
    "grid", [Grid(t=8, h=14, w=14), Grid(t=8, h=16, w=16), Grid(t=4, h=24, w=24), Grid(t=8, h=8, w=8)]
)
@pytest.mark.parametrize("mask", vjepa_masks(), ids=["short", "long"])
def test_few_tokens_are_neither_seen_nor_predicted(mask, grid):
    # The published masks leave out 24 to 28 % at 16 frames and batch 24.
    left_out = grid.num_tokens - mask.context_length(grid) - mask.target_length(grid)
    assert 0 <= left_out < 0.08 * grid.num_tokens


def frames(ids, grid):
    """Which tokens are in each row of ids, bool [b, t, h * w]."""
    inside = torch.zeros(len(ids), grid.num_tokens, dtype=torch.bool)
    return inside.scatter_(1, ids.flatten(1), True).view(len(ids), grid.t, -1)


def test_targets_are_tubes_through_the_whole_clip():
    # A place that is a target in one frame is context in none: the dropped tokens aside, all frames are alike.
    masks = SHORT(CLIP, 16, generator(0))
    context, target = frames(masks.context, CLIP), frames(masks.targets, CLIP)
    assert not bool((context.any(1) & target.any(1)).any())


def test_a_single_block_is_a_box_of_its_scale():
    mask, grid = (
        TubeMasking(num_blocks=1, spatial_scale=(0.2, 0.3), temporal_scale=(0.5, 0.5)),
        Grid(t=6, h=8, w=10),
    )
    targets = frames(replace(mask, surplus="context")(grid, 50, generator(0)).targets, grid)
    for sample in targets.view(50, 6, 8, 10):
        extents = [sample.amax([axis for axis in range(3) if axis != kept]) for kept in range(3)]
        spans = [int(extent.nonzero().max() - extent.nonzero().min() + 1) for extent in extents]
        assert spans[0] == 3
        assert 0.2 * 80 <= spans[1] * spans[2] <= 0.3 * 80


def test_surplus_tokens_go_where_they_are_sent():
    shown, asked = (replace(SHORT, surplus=side)(CLIP, 4, generator(0)) for side in ("context", "target"))
    dropped = SHORT(CLIP, 4, generator(0))
    for masks in (shown, asked):
        assert masks.context.shape[1] + masks.targets.shape[2] == CLIP.num_tokens
    assert torch.equal(asked.context, dropped.context)
    assert torch.equal(shown.targets, dropped.targets)
    assert bool((frames(asked.targets, CLIP) == ~frames(asked.context, CLIP)).all())


def test_an_inverted_mask_swaps_the_two_sides():
    plain, inverted = SHORT(CLIP, 4, generator(0)), replace(SHORT, inverted=True)(CLIP, 4, generator(0))
    # The same blocks; which tokens are dropped differs.
    assert not bool((frames(plain.context, CLIP) & frames(inverted.context, CLIP)).any())
    assert inverted.context.shape[1] == SHORT.target_length(CLIP)
    assert inverted.targets.shape[2] == SHORT.context_length(CLIP)


def test_late_frames_are_to_be_predicted_where_the_context_may_not_come_from_them():
    mask = replace(SHORT, max_context_time=0.5, surplus="target")
    masks = mask(CLIP, 8, generator(0))
    assert not bool(frames(masks.context, CLIP)[:, 4:].any())
    assert bool(frames(masks.targets, CLIP)[:, 4:].all())
    assert mask.num_context_steps(Grid(t=1)) == 1
    assert [
        replace(SHORT, max_context_time=share).num_context_steps(Grid(t=10)) for share in (0.01, 0.3, 0.55)
    ] == [1, 3, 5]


def test_max_context_shortens_the_context_only():
    mask = replace(LONG, max_context=100)
    assert (mask.context_length(CLIP), mask.target_length(CLIP)) == (100, LONG.target_length(CLIP))
    assert replace(LONG, max_context=10**6).context_length(CLIP) == LONG.context_length(CLIP)


def test_a_sample_that_is_never_of_use_still_gets_a_valid_mask(monkeypatch):
    SHORT.context_length(CLIP)
    monkeypatch.setattr(tube, "_MAX_ROUNDS", 0)
    check_mask(SHORT, [CLIP], num_draws=4)


def test_images_are_clips_of_one_step():
    check_mask(SHORT, [Grid(h=14, w=14), Grid(h=9, w=16), Grid(w=40)], num_draws=8)


def test_the_two_masks_of_v_jepa():
    assert [(mask.num_blocks, mask.spatial_scale) for mask in vjepa_masks()] == [
        (8, (0.15, 0.15)),
        (2, (0.7, 0.7)),
    ]
    assert vjepa_masks(legacy=True) == tuple(replace(mask, legacy=True) for mask in vjepa_masks())
    assert TubeMasking() == SHORT


def test_list_fields_from_a_configuration_file_are_taken():
    mask = TubeMasking(spatial_scale=[0.1, 0.2], temporal_scale=[1, 1])  # type: ignore[arg-type]
    assert mask == TubeMasking(spatial_scale=(0.1, 0.2))
    assert TubeMasking(**dataclasses.asdict(mask)) == mask
    check_mask(mask, [Grid(t=2, h=10, w=10)], num_draws=4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_blocks": 0}, "num_blocks must be an integer of at least 1, got 0"),
        ({"max_context": 2.0}, "max_context must be an integer of at least 1, got 2.0"),
        ({"spatial_scale": (0.2, 0.1)}, r"spatial_scale must be \(low, high\) with 0 < low <= high <= 1"),
        ({"spatial_scale": 0.15}, "spatial_scale must be .* got 0.15"),
        ({"temporal_scale": (0.5, 1.5)}, r"temporal_scale must be .* got \(0.5, 1.5\)"),
        ({"aspect": (0, 1)}, r"aspect must be \(low, high\) with 0 < low <= high, got"),
        ({"max_context_time": 0.0}, r"max_context_time must be a share of the clip in \(0, 1\], got 0.0"),
        ({"max_context_time": float("nan")}, "max_context_time must be .* got nan"),
        ({"surplus": "keep"}, "surplus must be one of .* got 'keep'"),
        ({"surplus": "context", "max_context": 5}, 'surplus="context" shows all that is not predicted'),
        ({"surplus": "context", "max_context_time": 0.5}, "Leave the bounds out, or use surplus="),
        ({"legacy": True, "inverted": True, "max_context": 9}, "no bound for an inverted context"),
    ],
)
def test_wrong_fields_are_named(fields, message):
    with pytest.raises(ValueError, match=message):
        TubeMasking(**fields)


@pytest.mark.parametrize("batch_size", [0, 2.0, True])
def test_wrong_batch_sizes_are_refused(batch_size):
    with pytest.raises(ValueError, match="TubeMasking: batch_size must be an integer of at least 1"):
        SHORT(CLIP, batch_size, generator(0))


@pytest.mark.parametrize(
    ("mask", "grid"), [(SHORT, Grid()), (TubeMasking(spatial_scale=(1.0, 1.0)), CLIP), (SHORT, Grid(t=8))]
)
def test_grids_that_leave_nothing_are_refused_with_the_reason(mask, grid):
    with pytest.raises(
        ValueError, match=r"context and targets in only 0% .* Change num_blocks or spatial_scale"
    ):
        mask(grid, 2, generator(0))

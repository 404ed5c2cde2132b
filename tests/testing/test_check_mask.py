import random
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchjepa.masking import Grid, Masks, MultiBlockMasking, RandomMasking
from torchjepa.testing.check_mask import check_mask

GRID = Grid(h=6, w=6)
GOOD = RandomMasking(0.5, num_targets=2)


def changed(change):
    """A good mask with one thing done to what it returns."""

    def mask(grid, batch_size, generator):
        return change(GOOD(grid, batch_size, generator))

    return mask


def with_ids(name, change):
    def edit(masks):
        ids = getattr(masks, name).clone()
        return replace(masks, **{name: change(ids)})

    return changed(edit)


def put(position, value):
    def change(ids):
        ids[..., position] = value
        return ids

    return change


def leak(masks):
    targets = masks.targets.clone()
    targets[-1, -1] = masks.context[-1, : targets.shape[2]]
    return Masks(masks.context, targets)


@pytest.mark.parametrize("mask", [GOOD, MultiBlockMasking()])
def test_good_masks_pass(mask):
    check_mask(mask)
    check_mask(mask, [GRID, Grid(h=4, w=9)], batch_sizes=(1, 2, 33), num_draws=4)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (changed(lambda masks: masks.context), "expected a torchjepa.types.Masks, got Tensor"),
        (with_ids("context", lambda ids: ids.int()), "context must be int64, got torch.int32"),
        (with_ids("targets", lambda ids: ids.double()), "targets must be int64, got torch.float64"),
        (with_ids("targets", lambda ids: ids[:, 0]), r"targets must be \[b, m, k\], b = 1, got"),
        (
            with_ids("context", lambda ids: ids.repeat(2, 1)),
            r"context must be \[b, n_ctx\], b = 1, got \(2, 18\)",
        ),
        (with_ids("context", lambda ids: ids[:, :0]), r"context is empty, its shape is \(1, 0\)"),
        (with_ids("context", put(-1, 36)), r"context of sample 0 has ids outside \[0, 36\): \[36\]"),
        (with_ids("targets", put(0, -1)), r"targets of sample 0 has ids outside \[0, 36\): \[-1, -1\]"),
        (with_ids("context", lambda ids: ids.flip(1)), "context of sample 0 is not sorted"),
        (
            with_ids("targets", lambda ids: ids[..., [0, *range(ids.shape[2])]]),
            "targets of sample 0 repeats an id",
        ),
        (changed(leak), "is both in the context and in a target block: the answer leaks"),
    ],
)
def test_a_broken_result_is_named(mask, message):
    with pytest.raises(AssertionError, match=r"check_mask on a 1 x 6 x 6 grid, batch size \d+: .*" + message):
        check_mask(mask, [GRID])


def test_the_repeated_ids_are_shown():
    mask = with_ids("context", lambda ids: ids[..., [0, *range(ids.shape[1])]])
    with pytest.raises(AssertionError, match=r"repeats an id: \.\.\. \[(\d+), \1\] \.\.\. in one block"):
        check_mask(mask, [GRID])


def test_a_mask_that_raises_is_reported_with_its_reason():
    with pytest.raises(AssertionError, match=r"the mask raised ValueError.*MultiBlockMasking is for images"):
        check_mask(MultiBlockMasking(), [Grid(t=2, h=6, w=6)])


def test_overlap_may_be_allowed():
    check_mask(MultiBlockMasking(allow_overlap=True), [GRID], allow_overlap=True)


def test_state_kept_from_call_to_call_is_found():
    calls = iter(range(10**6))

    def mask(grid, batch_size, generator):
        return GOOD(grid, batch_size, torch.Generator().manual_seed(next(calls)))

    with pytest.raises(AssertionError, match="two draws from equally seeded generators differ"):
        check_mask(mask, [GRID])


@pytest.mark.parametrize(
    "draw", [lambda: torch.rand(1), lambda: np.random.rand(), random.random], ids=["torch", "numpy", "random"]
)
def test_a_moved_global_state_is_found(draw):
    def mask(grid, batch_size, generator):
        draw()
        return GOOD(grid, batch_size, generator)

    with pytest.raises(AssertionError, match="moved a global random state"):
        check_mask(mask, [GRID])


def test_an_ignored_generator_is_found():
    def mask(grid, batch_size, generator):
        return GOOD(grid, batch_size, torch.Generator().manual_seed(0))

    with pytest.raises(AssertionError, match="64 generators with different seeds gave the same masks"):
        check_mask(mask, [GRID])


def cut_to_the_shortest(grid, batch_size, generator):
    lengths = torch.randint(5, 15, (batch_size,), generator=generator)
    masks = GOOD(grid, batch_size, generator)
    return Masks(masks.context[:, : int(lengths.min())], masks.targets)


def test_a_length_that_follows_the_batch_size_is_found():
    with pytest.raises(AssertionError, match=r"mean context length is .* at batch size 1 and 5\.\d at 16"):
        check_mask(cut_to_the_shortest, [GRID])
    check_mask(cut_to_the_shortest, [GRID], batch_dependent=True)


def test_a_length_that_varies_from_draw_to_draw_is_no_fault():
    def mask(grid, batch_size, generator):
        ratio = 0.4 + 0.2 * float(torch.rand(1, generator=generator))
        return RandomMasking(ratio)(grid, batch_size, generator)

    check_mask(mask, [Grid(h=14, w=14)], batch_sizes=(1, 16, 64))

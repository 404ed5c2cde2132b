"""The mask contract as a check that any mask can be put through."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from torchjepa.rng import generator as keyed_generator
from torchjepa.testing.contract import global_random_states
from torchjepa.types import Grid, Masks, MaskSampler

_DEFAULT_GRIDS = (Grid(h=14, w=14), Grid(h=16, w=12), Grid(h=8, w=8))


def check_mask(
    mask: MaskSampler,
    grids: Sequence[Grid] = _DEFAULT_GRIDS,
    *,
    batch_sizes: Sequence[int] = (1, 16),
    num_draws: int = 64,
    allow_overlap: bool = False,
    batch_dependent: bool = False,
) -> None:
    """Check that a mask keeps the contract, and say what is broken where it does not.

    The contract: `mask(grid, batch_size, generator)` gives `Masks` with context `[b, n_ctx]` and targets
    `[b, m, k]`, int64 ids inside the grid, sorted without repeats in every row, none of them empty, no
    target id in the context; the result is a function of the generator alone (global random state is
    neither read nor moved), differs from draw to draw, and the lengths n_ctx and k do not depend on the batch
    size.

    Args:
        mask: the mask to judge.
        grids: grids that it must serve; for video, some with t > 1. Default: 14 x 14, 16 x 12 and 8 x 8 tokens.
        batch_sizes: batch sizes to try on each grid. Default (1, 16).
        num_draws: draws for each grid and batch size. Default 64.
        allow_overlap: accept target ids in the context.
        batch_dependent: accept lengths that depend on the batch size.

    Raises:
        AssertionError: the contract is broken; the message names grid, batch size, sample and ids.
    """
    for grid in grids:
        lengths: dict[int, Tensor] = {}
        for batch_size in batch_sizes:
            draws = [_draw(mask, grid, batch_size, draw) for draw in range(num_draws)]
            for masks in draws:
                _check_form(masks, grid, batch_size, allow_overlap)
            _check_only_the_generator(mask, grid, batch_size, draws)
            shapes = [(masks.context.shape[1], masks.targets.shape[2]) for masks in draws]
            lengths[batch_size] = torch.tensor(shapes, dtype=torch.float64)
        if not batch_dependent:
            _check_lengths(lengths, grid)


def _draw(mask: MaskSampler, grid: Grid, batch_size: int, draw: int) -> Masks:
    generator = keyed_generator(0, "check_mask", draw)
    try:
        masks = mask(grid, batch_size, generator)
    except Exception as error:
        raise AssertionError(f"{_where(grid, batch_size)}: the mask raised {error!r}.") from error
    if not isinstance(masks, Masks):
        raise AssertionError(
            f"{_where(grid, batch_size)}: expected a torchjepa.types.Masks, got {type(masks).__name__}."
        )
    return masks


def _check_form(masks: Masks, grid: Grid, batch_size: int, allow_overlap: bool) -> None:
    where = _where(grid, batch_size)
    for name, ids, form in (
        ("context", masks.context, "[b, n_ctx]"),
        ("targets", masks.targets, "[b, m, k]"),
    ):
        num_axes = form.count(",") + 1
        if ids.dtype != torch.int64:
            raise AssertionError(f"{where}: {name} must be int64, got {ids.dtype}.")
        if ids.ndim != num_axes or ids.shape[0] != batch_size:
            raise AssertionError(f"{where}: {name} must be {form}, b = {batch_size}, got {tuple(ids.shape)}.")
        if ids.numel() == 0:
            raise AssertionError(f"{where}: {name} is empty, its shape is {tuple(ids.shape)}.")
        _check_rows(where, name, ids, grid)
    if not allow_overlap:
        _check_no_overlap(where, masks, grid)


def _check_rows(where: str, name: str, ids: Tensor, grid: Grid) -> None:
    outside = (ids < 0) | (ids >= grid.num_tokens)
    if outside.any():
        sample = int(outside.nonzero()[0, 0])
        raise AssertionError(
            f"{where}: {name} of sample {sample} has ids outside [0, {grid.num_tokens}): "
            f"{ids[outside][:5].tolist()}."
        )
    for problem, wrong in (("repeats an id", ids.diff() == 0), ("is not sorted", ids.diff() < 0)):
        if wrong.any():
            first = wrong.nonzero()[0].tolist()
            row = ids[tuple(first[:-1])]
            pair = row[first[-1] : first[-1] + 2].tolist()
            raise AssertionError(
                f"{where}: {name} of sample {first[0]} {problem}: ... {pair} ... in one block."
            )


def _check_no_overlap(where: str, masks: Masks, grid: Grid) -> None:
    in_context = torch.zeros(len(masks), grid.num_tokens, dtype=torch.bool, device=masks.context.device)
    in_context.scatter_(1, masks.context, True)
    shared = in_context.gather(1, masks.targets.flatten(1))
    if shared.any():
        sample, position = shared.nonzero()[0].tolist()
        token = int(masks.targets.flatten(1)[sample, position])
        raise AssertionError(
            f"{where}: token {token} of sample {sample} is both in the context and in a target block: the "
            "answer leaks. Take the targets out of the context, or pass allow_overlap=True if that is meant."
        )


def _check_only_the_generator(mask: MaskSampler, grid: Grid, batch_size: int, draws: list[Masks]) -> None:
    where = _where(grid, batch_size)
    before = global_random_states()
    again = _draw(mask, grid, batch_size, 0)
    if global_random_states() != before:
        raise AssertionError(f"{where}: drawing a mask moved a global random state (torch, numpy or random).")
    if not _equal(again, draws[0]):
        raise AssertionError(
            f"{where}: two draws from equally seeded generators differ, so something else than the generator "
            "is used: a global random state, or state kept from call to call."
        )
    if len(draws) > 1 and all(_equal(masks, draws[0]) for masks in draws[1:]):
        raise AssertionError(
            f"{where}: {len(draws)} generators with different seeds gave the same masks: the generator is "
            "ignored."
        )


def _check_lengths(lengths: dict[int, Tensor], grid: Grid) -> None:
    # Lengths, [draws, (context, target)], may vary from draw to draw (a random ratio, say); their means may not follow
    # the batch size. Five standard errors and one token are far beyond chance.
    for small, large in itertools.pairwise(sorted(lengths)):
        one, other = lengths[small], lengths[large]
        error = ((one.var(0, correction=0) + other.var(0, correction=0)) / len(one)).sqrt()
        gap = (one.mean(0) - other.mean(0)).abs()
        for column, name in enumerate(("context", "target")):
            if gap[column] > 1.0 + 5.0 * error[column]:
                means = [float(drawn[:, column].mean()) for drawn in (one, other)]
                raise AssertionError(
                    f"{_where(grid, None)}: the mean {name} length is {means[0]:.1f} tokens at batch size "
                    f"{small} and {means[1]:.1f} at {large}: the task depends on the batch size. Fix the "
                    "length by grid and configuration, or pass batch_dependent=True if that is meant."
                )


def _equal(one: Masks, other: Masks) -> bool:
    return torch.equal(one.context, other.context) and torch.equal(one.targets, other.targets)


def _where(grid: Grid, batch_size: int | None) -> str:
    size = "" if batch_size is None else f", batch size {batch_size}"
    return f"check_mask on a {grid.t} x {grid.h} x {grid.w} grid{size}"

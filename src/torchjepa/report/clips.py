"""Clips for the page: what the learner sees of a few videos, its masks over them, and features over time."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from torchjepa.masking import coverage
from torchjepa.report.material import ClipExamples, ClipMaps, Pictures
from torchjepa.report.pictures import principal_colours
from torchjepa.rng import generator
from torchjepa.types import Grid, Masks, MaskSampler

NEITHER, CONTEXT, TARGET = 0, 1, 2
COVERAGE_DRAWS = 1024


def clip_examples(clips: Pictures, masks: Sequence[MaskSampler], grid: Grid, seed: int) -> ClipExamples:
    """Training clips, each mask drawn over the first clip of every video, and each mask's coverage.

    Args:
        clips: uint8 `[b, v, num_frames, height, width, 3]`.
        masks: what the learner masks with; none where it does not.
        grid: the encoder's token grid.
        seed: which masks are drawn.
    """
    states = np.zeros((len(masks), len(clips), *grid.shape), np.uint8)
    context, target = np.zeros((2, len(masks), *grid.shape), np.float32)
    for index, mask in enumerate(masks):
        states[index] = mask_states(mask(grid, len(clips), generator(seed, "report-mask", index)), grid)
        measured = coverage(mask, grid, COVERAGE_DRAWS, generator(seed, "report-coverage", index))
        context[index], target[index] = measured.context, measured.target
    return ClipExamples(clips, states, context, target)


def mask_states(masks: Masks, grid: Grid) -> NDArray[np.uint8]:
    """For each token `NEITHER`, `CONTEXT` or `TARGET` (of any block), uint8 `[b, t, h, w]`."""
    states = torch.full((len(masks), grid.num_tokens), NEITHER, dtype=torch.uint8)
    states.scatter_(1, masks.context.cpu(), CONTEXT)
    states.scatter_(1, masks.targets.flatten(1).cpu(), TARGET)
    return states.view(-1, *grid.shape).numpy()


def clip_maps(clips: Pictures, encoder: NDArray[np.float32], untrained: NDArray[np.float32]) -> ClipMaps:
    """Features coloured over time: the components of all clips and time steps together, so that colours compare.

    Args:
        clips: uint8 `[b, num_frames, height, width, 3]`.
        encoder: tokens of the trained encoder, `[b, t, h, w, d]`.
        untrained: the same of the untrained encoder.
    """
    return ClipMaps(clips, *principal_colours(encoder, untrained))


def spaced(num: int, most: int) -> NDArray[np.int64]:
    """At most `most` of the indices 0 to num - 1, evenly spaced, the first and the last among them."""
    return np.rint(np.linspace(0, num - 1, min(num, most))).astype(np.int64)

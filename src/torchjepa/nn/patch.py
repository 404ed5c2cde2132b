"""From inputs to patches: 1-D, 2-D and 3-D inputs are all `[b, c, t, h, w]` with axes of length one.

Axis letter of this file: `p` values of a patch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from torchjepa.types import Grid


def patch_grid(input_shape: Sequence[int], patch_size: Sequence[int]) -> Grid:
    """The token grid of an input: every axis divided by the patch's.

    Args:
        input_shape: length of every spatial axis, in input units: `(L,)`, `(H, W)` or `(T, H, W)`.
        patch_size: length of the patch along each of them.

    Raises:
        ValueError: another number of axes than the patch has, or a length that the patch does not divide.
    """
    if len(input_shape) != len(patch_size):
        raise ValueError(
            f"grid: the patch {tuple(patch_size)} has {len(patch_size)} axes, so inputs must be [b, c, ...] "
            f"with {len(patch_size)} after the channels, got {tuple(input_shape)}."
        )
    if any(length < patch or length % patch for length, patch in zip(input_shape, patch_size)):
        below = tuple(length // patch * patch for length, patch in zip(input_shape, patch_size))
        above = tuple(
            max(math.ceil(length / patch), 1) * patch for length, patch in zip(input_shape, patch_size)
        )
        raise ValueError(
            f"grid: an input of {tuple(input_shape)} is not a whole number of patches of {tuple(patch_size)}; "
            f"resize or crop it to {f'{below} or {above}' if min(below) else above}, or choose a patch size that "
            f"divides it."
        )
    counts = [length // patch for length, patch in zip(input_shape, patch_size)]
    t, h, w = [1] * (3 - len(counts)) + counts
    return Grid(t=t, h=h, w=w)


def patchify(
    x: Float[Tensor, "b c *axes"], patch_size: Sequence[int], ids: Int64[Tensor, "b n"] | None = None
) -> Float[Tensor, "b n_out p"]:
    """Cut inputs into patches, flattened channel first as a convolution's weight is.

    Args:
        x: inputs `[b, c, L]`, `[b, c, H, W]` or `[b, c, T, H, W]`.
        patch_size: length of the patch along each spatial axis.
        ids: the tokens to return, int64 `[b, n]`; the others are never copied. All of them when absent.

    Returns:
        `[b, n, c * prod(patch_size)]`, in the order of `ids` or of the grid, row-major.

    Raises:
        ValueError: the patch does not divide the input.
    """
    grid = patch_grid(x.shape[2:], patch_size)
    pt, ph, pw = [1] * (3 - len(patch_size)) + list(patch_size)
    b, c = x.shape[:2]
    blocks = x.reshape(b, c, grid.t, pt, grid.h, ph, grid.w, pw).permute(0, 2, 4, 6, 1, 3, 5, 7)
    if ids is None:
        return blocks.reshape(b, grid.num_tokens, c * pt * ph * pw)
    sample = torch.arange(b, device=x.device)[:, None]
    time, row, column = ids // (grid.h * grid.w), ids // grid.w % grid.h, ids % grid.w
    return blocks[sample, time, row, column].flatten(2)

"""Scikit-learn's handwritten digits, 16 x 16, each view with a place, a background and a stroke of its own.

A digit's label is in what its views share and the nuisance is in what they do not, so that half a minute of
training beats an untrained network clearly: a small run that is healthy can show it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import Tensor

from torchjepa import rng
from torchjepa.engine.sampler import KeyedSampler
from torchjepa.types import Batch

SIDE = 16
_NUM_TEST = 360  # the last ones, written by other people than the rest


@cache
def digits(part: str) -> tuple[Tensor, Tensor]:
    """Pictures in [0, 1], `[n, 1, 8, 8]`, and labels `[n]`, of `train` or `test`."""
    pictures, labels = load_digits(return_X_y=True)
    x = torch.from_numpy(pictures).float().div(16).view(-1, 1, 8, 8)
    rows = slice(-_NUM_TEST) if part == "train" else slice(-_NUM_TEST, None)
    return x[rows], torch.from_numpy(labels).long()[rows]


@dataclass(frozen=True)
class Nuisance:
    """What changes from view to view.

    Args:
        shift: largest shift of the digit, in units of half a canvas.
        background: largest height of a linear ramp under the digit.
        stroke: contrast of a straight bar across the canvas.
        noise: standard deviation of white noise.
    """

    shift: float = 0.25
    background: float = 0.6
    stroke: float = 0.6
    noise: float = 0.1

    def view(self, pictures: Tensor, generator: torch.Generator) -> Tensor:
        """One view of each picture `[b, 1, 8, 8]`: `[b, 1, 16, 16]`, mean about 0 and deviation about 1."""
        b = len(pictures)
        draw = torch.rand(b, 10, generator=generator) * 2 - 1
        canvas = place(pictures, 1.4 + 0.2 * draw[:, 0], self.shift * draw[:, 1:3], 0.15 * draw[:, 3])
        y, x = torch.meshgrid(*[torch.linspace(-1, 1, SIDE)] * 2, indexing="ij")
        along = draw[:, 4, None, None] * x + draw[:, 5, None, None] * y
        angle = torch.pi * draw[:, 6, None, None]
        beside = angle.cos() * x + angle.sin() * y - 0.8 * draw[:, 7, None, None]
        bar = (-(beside / 0.1).square()).exp()
        canvas = (
            canvas + self.background * (along + draw[:, 8, None, None])[:, None] + self.stroke * bar[:, None]
        )
        canvas = canvas + self.noise * torch.randn(canvas.shape, generator=generator)
        return (canvas - 0.3) / 0.4


def place(pictures: Tensor, zoom: Tensor, shift: Tensor, angle: Tensor) -> Tensor:
    """The digits on the canvas: zoom 1 fills it, 1.4 leaves a margin; bilinear."""
    cos, sin = zoom * angle.cos(), zoom * angle.sin()
    theta = torch.stack(
        [torch.stack([cos, -sin, -shift[:, 0] * zoom], 1), torch.stack([sin, cos, -shift[:, 1] * zoom], 1)], 1
    )
    grid = F.affine_grid(theta, [len(pictures), 1, SIDE, SIDE], align_corners=False)
    return F.grid_sample(pictures, grid, align_corners=False)


@dataclass(frozen=True)
class DigitBatches:
    """The training batches: a function of the seed and the step alone."""

    nuisance: Nuisance
    seed: int
    num_views: int = 2

    def __call__(self, sampler: KeyedSampler, device: torch.device) -> Iterator[Batch]:
        x, labels = digits("train")
        for keys in sampler:
            ids = torch.tensor(keys.indices)
            draws = rng.generator(self.seed, "zoo views", keys.step)
            views = tuple(self.nuisance.view(x[ids], draws) for _ in range(self.num_views))
            yield Batch(views, ids, labels[ids], keys.row_start, keys.global_size)


def judged(part: str, nuisance: Nuisance, copies: int) -> tuple[Tensor, Tensor]:
    """Views and labels to judge on, each digit in `copies` views."""
    x, labels = digits(part)
    draws = rng.generator(0, "zoo judged", part)
    views = [nuisance.view(x, draws) for _ in range(copies)]
    return torch.cat(views), labels.repeat(copies)

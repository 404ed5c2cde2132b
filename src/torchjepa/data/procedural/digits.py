"""The embedded data: real handwritten digits, each somewhere on a larger canvas among distractor strokes."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.rng import uniforms

_CANVAS = 32
_CHUNK = 200  # canvases drawn together, so that they stay in cache; the noise is keyed by the chunk
_POINTS = 16  # blobs along a stroke: closer than a blob is wide, so that the ink is even
_DRAWS_OF_STROKE = 8
_TEST_SHARE = 0.2


class DigitsSource:
    """Gray 32 x 32 canvases, each with one of scikit-learn's handwritten digits and some distractor strokes.

    1. The 1,797 digits (8 x 8, UCI optical recognition of handwritten digits, in scikit-learn) are divided
       once and for all, class by class in a keyed order: 20 % for the test canvases, the rest for training.
       No digit is in both.
    2. A canvas takes a digit. Its side is drawn from [10, 16] pixels, its corner anywhere that leaves it
       whole on the canvas (not rounded to pixels); it is enlarged bilinearly and its ink scaled by a
       contrast drawn from [0.6, 1].
    3. Distractors: one pen stroke, and each of `num_strokes - 1` more with a chance of one half. A stroke
       follows a quadratic Bezier curve whose chord is 6 to 14 pixels long and whose middle lies up to 0.4
       chords beside it; its direction is any, its chord's middle anywhere (it may cross the digit). The
       pen is a Gaussian of 0.7 to 1.2 pixels, about a digit's own; its contrast is drawn from [0.4, 1].
    4. Ink = 1 - (1 - digit)(1 - strokes), strokes added up and cut at 1, on black, stored as uint8. No gray
       background and no noise: a level that all views of a canvas share would be the first thing that an
       invariance learns (docs/log.md).

    The label is the digit. Every draw is uniform and keyed by `(seed, split, canvas)`. With 10,000 canvases
    for training and 2,000 for testing, the 20 nearest neighbours by cosine on raw pixels name 39 % of the
    digits (69 % without strokes, 35 % with up to four).

    Args:
        split: "train" or "test".
        num_samples: number of canvases; default 20,000 for training, 4,000 for testing.
        seed: key of all draws. The division into train and test digits does not depend on it.
        num_strokes: the most distractor strokes on a canvas; 0 for none.

    Raises:
        ValueError: an unknown split, fewer than one canvas, or a negative number of strokes.
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        num_samples: int | None = None,
        *,
        seed: int = 0,
        num_strokes: int = 3,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"DigitsSource: split must be 'train' or 'test', got {split!r}.")
        num = {"train": 20_000, "test": 4_000}[split] if num_samples is None else num_samples
        if num < 1:
            raise ValueError(f"DigitsSource: num_samples must be at least 1, got {num}.")
        if num_strokes < 0:
            raise ValueError(f"DigitsSource: num_strokes must be at least 0, got {num_strokes}.")
        self.split, self.seed, self.num_strokes = split, seed, num_strokes
        self.classes: tuple[str, ...] = tuple("0123456789")
        self.num_channels: int = 1
        digits, targets = digits_of(split)
        ids = np.arange(num)
        chosen = np.minimum(self._draw("digit", ids, 1)[:, 0] * len(digits), len(digits) - 1).astype(np.int64)
        self.digit_ids: NDArray[np.int64] = chosen
        self.labels: NDArray[np.int64] = targets[chosen]
        self._images = np.empty((num, _CANVAS, _CANVAS, 1), dtype=np.uint8)
        for start in range(0, num, _CHUNK):
            rows = slice(start, min(start + _CHUNK, num))
            self._images[rows, :, :, 0] = self._draw_canvases(digits[chosen[rows]], ids[rows]).numpy()

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """Split and canvas: `train/17`."""
        return f"{self.split}/{index}"

    def read(self, index: int) -> NDArray[np.uint8]:
        """The canvas, uint8 `[32, 32, 1]`."""
        return self._images[index]

    def fingerprint(self) -> dict[str, object]:
        """How the canvases were made."""
        return {
            "kind": "digits",
            "split": self.split,
            "num_samples": len(self),
            "seed": self.seed,
            "num_strokes": self.num_strokes,
        }

    def _draw(self, purpose: str, ids: NDArray[np.int64], num: int) -> NDArray[np.float64]:
        return uniforms(self.seed, "digits", self.split, purpose, ids=ids, num=num)

    def _draw_canvases(self, digits: NDArray[np.float32], ids: NDArray[np.int64]) -> Tensor:
        place = torch.from_numpy(self._draw("place", ids, 4).astype(np.float32))
        side, contrast = 10 + 6 * place[:, 0], 0.6 + 0.4 * place[:, 1]
        ink = contrast[:, None, None] * _enlarge(torch.from_numpy(digits), side, place[:, 2:4])
        if self.num_strokes:
            draws = self._draw("strokes", ids, self.num_strokes * _DRAWS_OF_STROKE).astype(np.float32)
            strokes = _strokes(torch.from_numpy(draws).view(len(ids), self.num_strokes, _DRAWS_OF_STROKE))
            ink = 1 - (1 - ink) * (1 - strokes)
        return ink.mul_(255).round_().to(torch.uint8)


def digits_of(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The handwritten digits that may be seen in a split, `[n, 8, 8]` in [0, 1], and what they are."""
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    images, targets = data.images.astype(np.float32) / 16, data.target.astype(np.int64)
    order = uniforms(0, "digits", "split", ids=np.arange(len(targets)), num=1)[:, 0]
    in_test = np.zeros(len(targets), dtype=bool)
    for label in range(10):
        members = np.flatnonzero(targets == label)
        ranked = members[np.argsort(order[members], kind="stable")]
        in_test[ranked[: round(_TEST_SHARE * len(members))]] = True
    chosen = in_test if split == "test" else ~in_test
    return images[chosen], targets[chosen]


def _enlarge(
    digits: Float[Tensor, "b h w"], side: Float[Tensor, " b"], corner: Float[Tensor, "b 2"]
) -> Float[Tensor, "b y x"]:
    # Bilinear, as two small matrix products: canvas = W_y digit W_x^T with W[i, k] = max(0, 1 - |u_i - k|),
    # where u_i is the place of pixel i in the digit's own pixels, beyond whose outermost centres it fades
    # to nothing.
    pixels, cells = torch.arange(_CANVAS) + 0.5, torch.arange(digits.shape[1], dtype=torch.float32)
    start = corner * (_CANVAS - side[:, None])
    places = (pixels - start[:, :, None]) / side[:, None, None] * digits.shape[1] - 0.5
    weights = (1 - (places[..., None] - cells).abs()).clamp_(min=0)
    return weights[:, 0] @ digits @ weights[:, 1].transpose(1, 2)


def _strokes(draws: Float[Tensor, "b s u"]) -> Float[Tensor, "b y x"]:
    # Blobs along quadratic Bezier curves. A Gaussian blob is a column times a row, so that all strokes of a
    # canvas are one small matrix product; the sum of blobs is flat along the curve and is divided by its
    # height there.
    width, length, angle = 0.7 + 0.5 * draws[..., 0], 6 + 8 * draws[..., 2], 2 * torch.pi * draws[..., 3]
    contrast = 0.4 + 0.6 * draws[..., 1]
    contrast[:, 1:] *= draws[:, 1:, 7] < 0.5
    bend = 0.8 * (draws[..., 4] - 0.5) * length
    along = torch.stack([angle.sin(), angle.cos()], dim=1) * length[:, None] / 2
    across = torch.stack([angle.cos(), -angle.sin()], dim=1) * bend[:, None]
    middle = _CANVAS * draws[..., 5:7].transpose(1, 2)
    t = torch.linspace(-1, 1, _POINTS)
    points = middle[..., None] + along[..., None] * t + across[..., None] * (1 - t * t)
    distance = points[..., None] - (torch.arange(_CANVAS) + 0.5)
    exponent = distance.square_().mul_((-0.5 / width.square())[:, None, :, None, None])
    # Far from a pen the exponential would be a denormal number, on which processors are sixty times slower.
    blobs = exponent.clamp_(min=-30).exp_().flatten(2, 3)
    height = (2 * torch.pi) ** 0.5 * width * (_POINTS - 1) / length
    columns = blobs[:, 0] * (contrast / height).repeat_interleave(_POINTS, dim=1)[..., None]
    return (columns.transpose(1, 2) @ blobs[:, 1]).clamp_(max=1)

"""The embedded data: real handwritten digits, each somewhere on a larger canvas among distractor strokes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from torchjepa.rng import generator, uniforms

_CANVAS = 32
_CHUNK = 1000  # canvases drawn together; the noise is keyed by the chunk
_POINTS = 28  # blobs along a stroke: closer than a blob is wide, so that the ink is even
_DRAWS_OF_STROKE = 8
_TEST_SHARE = 0.2


class DigitsSource:
    """Gray 32 x 32 canvases, each with one handwritten digit of scikit-learn's digits and some distractor strokes.

    1. The 1,797 digits (8 x 8, UCI optical recognition of handwritten digits, in scikit-learn) are divided once
       and for all, class by class in a keyed order: 20 % for the test canvases, the rest for training. No digit
       is in both.
    2. A canvas takes a digit, its side drawn from [12, 20] pixels, its corner anywhere that leaves it whole on
       the canvas (no rounding to pixels), enlarged bilinearly, its ink scaled by a contrast drawn from [0.6, 1].
    3. `num_strokes` distractors, each with a chance of one half beyond the first two: pen strokes along a
       quadratic Bezier curve of 6 to 14 pixels with a random bend, anywhere on the canvas (they may cross the
       digit), as wide as a digit's own (a Gaussian pen of 0.7 to 1.2 pixels), contrast from [0.4, 1].
    4. Ink joins as 1 - (1 - digit)(1 - stroke_1)...; a background gray drawn from [0, 0.2] lies beneath; Gaussian
       noise with standard deviation 0.04 is added; values are cut to [0, 1] and stored as uint8.

    The label is the digit. Every draw is keyed by `(seed, split, canvas)`.

    Args:
        split: "train" or "test".
        num_samples: number of canvases; default 20,000 for training, 4,000 for testing.
        seed: key of all draws. The division into train and test digits does not depend on it.
        num_strokes: the most distractor strokes on a canvas.

    Raises:
        ValueError: an unknown split, or fewer than one canvas.
    """

    def __init__(
        self,
        split: Literal["train", "test"],
        num_samples: int | None = None,
        *,
        seed: int = 0,
        num_strokes: int = 4,
    ) -> None:
        if split not in ("train", "test"):
            raise ValueError(f"DigitsSource: split must be 'train' or 'test', got {split!r}.")
        num = {"train": 20_000, "test": 4_000}[split] if num_samples is None else num_samples
        if num < 1:
            raise ValueError(f"DigitsSource: num_samples must be at least 1, got {num}.")
        self.split, self.seed, self.num_strokes = split, seed, num_strokes
        self.classes: tuple[str, ...] = tuple("0123456789")
        self.num_channels: int = 1
        digits, targets = _digits_of(split)
        ids = np.arange(num)
        chosen = np.minimum(self._draw("digit", ids, 1)[:, 0] * len(digits), len(digits) - 1).astype(np.int64)
        self.digit_ids: NDArray[np.int64] = chosen
        self.labels: NDArray[np.int64] = targets[chosen].astype(np.int64)
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
        place = torch.from_numpy(self._draw("place", ids, 5).astype(np.float32))
        side, contrast = 12 + 8 * place[:, 0], 0.6 + 0.4 * place[:, 1]
        ink = contrast[:, None, None] * _enlarge(torch.from_numpy(digits), side, place[:, 2:4])
        blank = 1 - ink
        strokes = self._draw("strokes", ids, self.num_strokes * _DRAWS_OF_STROKE).astype(np.float32)
        for index, draws in enumerate(torch.from_numpy(strokes).split(_DRAWS_OF_STROKE, dim=1)):
            blank *= 1 - _stroke(draws, always=index < 2)
        background = 0.2 * place[:, 4, None, None]
        noise_key = generator(self.seed, "digits", self.split, "noise", int(ids[0]) // _CHUNK)
        noise = torch.randn(_CHUNK, _CANVAS, _CANVAS, generator=noise_key)[: len(ids)]
        canvas = (background + (1 - background) * (1 - blank)).add_(noise, alpha=0.04)
        return canvas.clamp_(0, 1).mul_(255).round_().to(torch.uint8)


def _digits_of(split: str) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    from sklearn.datasets import load_digits

    data = load_digits()
    images, targets = data.images.astype(np.float32) / 16, data.target
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
    # Bilinear, as two small matrix products: canvas = W_y digit W_x^T, W[i, k] = max(0, 1 - |u_i - k|), u_i the
    # place of pixel i in the digit's own pixels. Beyond the outermost centres the digit fades over one pixel.
    pixels, cells = torch.arange(_CANVAS) + 0.5, torch.arange(digits.shape[1], dtype=torch.float32)
    start = corner * (_CANVAS - side[:, None])
    places = (pixels - start[:, :, None]) / side[:, None, None] * digits.shape[1] - 0.5
    weights = (1 - (places[..., None] - cells).abs()).clamp_(min=0)
    return weights[:, 0] @ digits @ weights[:, 1].transpose(1, 2)


def _stroke(draws: Float[Tensor, "b u"], *, always: bool) -> Float[Tensor, "b y x"]:
    # Blobs along a quadratic Bezier curve; a Gaussian blob is a product of a row and a column, so that a stroke is
    # one small matrix product. The sum of blobs is flat along the curve; its peak is scaled to the contrast.
    width, contrast = 0.7 + 0.5 * draws[:, 0], 0.4 + 0.6 * draws[:, 1]
    if not always:
        contrast = contrast * (draws[:, 7] < 0.5)
    length, angle = 6 + 8 * draws[:, 2], 2 * torch.pi * draws[:, 3]
    bend = (draws[:, 4] - 0.5) * length
    middle = _CANVAS * draws[:, 5:7]
    along = torch.stack([angle.sin(), angle.cos()], dim=1)
    across = along.flip(1) * torch.tensor([1.0, -1.0])
    t = torch.linspace(-1, 1, _POINTS)
    points = middle[:, :, None] + along[:, :, None] * (length / 2)[:, None, None] * t
    points = points + across[:, :, None] * bend[:, None, None] * (1 - t * t)
    distance = (torch.arange(_CANVAS) + 0.5) - points[..., None]
    blobs = torch.exp(-0.5 * (distance / width[:, None, None, None]).square())
    ink = blobs[:, 0].transpose(1, 2) @ blobs[:, 1]
    spacing = length / (_POINTS - 1)
    peak = (2 * torch.pi) ** 0.5 * width / spacing
    return contrast[:, None, None] * (ink / peak[:, None, None]).clamp_(max=1)

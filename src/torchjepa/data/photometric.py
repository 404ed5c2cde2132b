"""Changes of colour on a whole batch, every sample with its own keyed draws."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R 601, as Pillow's and torchvision's gray
_ORDERS = np.asarray(list(permutations(range(4))))


@dataclass(frozen=True)
class Photometric:
    """Colour jitter, grayscale, blur and solarisation, in this order; the defaults are BYOL's, without blur.

    Jitter applies brightness (f x), contrast (mean gray + f (x - mean gray)), saturation (gray + f (x -
    gray)) and hue (turned by f at equal value and chroma) in an order drawn for each sample, with f drawn
    uniformly from [max(0, 1 - strength), 1 + strength], for hue from [-strength, strength]; values are cut
    to [0, 1] after each. Saturation, hue and grayscale pass over images that are not RGB.

    Args:
        jitter_probability: chance of the four changes of jitter.
        brightness: strength, 0 or more.
        contrast: strength, 0 or more.
        saturation: strength, 0 or more.
        hue: strength in turns of the colour circle, 0 to 0.5.
        gray_probability: chance of losing all colour.
        blur_probability: chance of a Gaussian blur.
        blur_sigma: range of its standard deviation in pixels of the view; (0.1, 2) at 224 x 224.
        solarise_probability: chance of inverting every value of at least `solarise_threshold`.
        solarise_threshold: in [0, 1].

    Raises:
        ValueError: a probability, strength or range outside of these.
    """

    jitter_probability: float = 0.8
    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.2
    hue: float = 0.1
    gray_probability: float = 0.2
    blur_probability: float = 0.0
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    solarise_probability: float = 0.0
    solarise_threshold: float = 0.5

    NUM_DRAWS = 10  # not a field: the number of uniform draws for each sample

    def __post_init__(self) -> None:
        for name in ("jitter", "gray", "blur", "solarise"):
            if not 0 <= (value := getattr(self, f"{name}_probability")) <= 1:
                raise ValueError(f"Photometric: {name}_probability must be in [0, 1], got {value}.")
        limits = {"brightness": math.inf, "contrast": math.inf, "saturation": math.inf, "hue": 0.5}
        for name, most in {**limits, "solarise_threshold": 1.0}.items():
            if not 0 <= (value := getattr(self, name)) <= most:
                raise ValueError(f"Photometric: {name} must be at least 0 and at most {most}, got {value}.")
        if not 0 < self.blur_sigma[0] <= self.blur_sigma[1]:
            raise ValueError(f"Photometric: blur_sigma must be 0 < low <= high, got {self.blur_sigma}.")

    def __call__(self, x: Float[Tensor, "b c h w"], draws: NDArray[np.float64]) -> Float[Tensor, "b c h w"]:
        """Change the colours of a batch.

        Args:
            x: values in [0, 1]; overwritten.
            draws: uniform draws in [0, 1), `[b, NUM_DRAWS]`; row i decides all that happens to sample i.

        Returns:
            Values in [0, 1].
        """
        is_rgb = x.shape[1] == 3
        if self.jitter_probability > 0:
            self._jitter(x, draws, is_rgb)
        if is_rgb:
            _change(x, draws[:, 6] < self.gray_probability, lambda part: _gray(part).expand_as(part))
        low, high = self.blur_sigma
        sigma = low + draws[:, 8] * (high - low)
        _change(x, draws[:, 7] < self.blur_probability, lambda part, s: _blur(part, s, high), sigma)
        _change(x, draws[:, 9] < self.solarise_probability, self._solarise)
        return x

    def _jitter(self, x: Tensor, draws: NDArray[np.float64], is_rgb: bool) -> None:
        applies = draws[:, 0] < self.jitter_probability
        order = _ORDERS[(draws[:, 5] * len(_ORDERS)).astype(np.int64)]
        changes = (
            (_brighten, self.brightness),
            (_contrast, self.contrast),
            (_saturate, self.saturation),
            (turn_hue, self.hue),
        )
        for place in range(4):
            for index, (change, strength) in enumerate(changes):
                if strength == 0 or (index >= 2 and not is_rgb):
                    continue
                low = -strength if change is turn_hue else max(0.0, 1 - strength)
                high = strength if change is turn_hue else 1 + strength
                factors = low + draws[:, 1 + index] * (high - low)
                _change(x, applies & (order[:, place] == index), change, factors)

    def _solarise(self, x: Tensor) -> Tensor:
        return torch.where(x >= self.solarise_threshold, 1 - x, x)


def _change(
    x: Tensor,
    chosen: NDArray[np.bool_],
    change: Callable[..., Tensor],
    factors: NDArray[np.float64] | None = None,
) -> None:
    # Chosen on the host, so that no device is waited for, and only the chosen rows are worked on.
    rows = np.flatnonzero(chosen)
    if not len(rows):
        return
    index = torch.from_numpy(rows).to(x.device, non_blocking=True)
    extra = []
    if factors is not None:
        column = torch.from_numpy(factors[rows].astype(np.float32)).to(x.device, x.dtype, non_blocking=True)
        extra = [column[:, None, None, None]]
    x.index_copy_(0, index, change(x.index_select(0, index), *extra))


# Products and sums stay separate operations below: a fused one may round differently in the middle and at the
# end of a row of memory, and the same image would then depend on its batch by a bit.


def _gray(x: Tensor) -> Tensor:
    if x.shape[1] != 3:
        return x.mean(dim=1, keepdim=True)
    red, green, blue = x.split(1, dim=1)
    return red * _LUMA[0] + green * _LUMA[1] + blue * _LUMA[2]


def _brighten(x: Tensor, factor: Tensor) -> Tensor:
    return (x * factor).clamp_(0, 1)


def _contrast(x: Tensor, factor: Tensor) -> Tensor:
    # The mean from whole numbers: their sum is exact, whatever the order in which a batch is summed.
    whole = (_gray(x) * 2.0**20).round_().to(torch.int64)
    mean = (whole.sum(dim=(2, 3), keepdim=True).double() / (2.0**20 * whole[0].numel())).to(x.dtype)
    return ((x - mean) * factor).add_(mean).clamp_(0, 1)


def _saturate(x: Tensor, factor: Tensor) -> Tensor:
    gray = _gray(x)
    return ((x - gray) * factor).add_(gray).clamp_(0, 1)


def turn_hue(x: Float[Tensor, "b c h w"], turns: Float[Tensor, "b 1 1 1"]) -> Float[Tensor, "b c h w"]:
    """Turn the hue of RGB values at equal value and chroma (HSV).

    channel = V - C clip(min(k, 4 - k), 0, 1) with k = (n + 6 h) mod 6 and n = 5, 3, 1 for red, green, blue,
    which skips the way through saturation and back: four times faster than kornia's two conversions.

    Args:
        x: RGB values in [0, 1].
        turns: of the colour circle, any sign.
    """
    red, green, blue = x.unbind(1)
    value = torch.maximum(torch.maximum(red, green), blue)
    chroma = value - torch.minimum(torch.minimum(red, green), blue)
    scale = chroma.clamp(min=1e-12)
    warm = torch.where(value == green, (blue - red) / scale + 2, (red - green) / scale + 4)
    hue = torch.where(value == red, (green - blue) / scale, warm) + turns[:, 0] * 6
    out = torch.empty_like(x)
    for channel, n in enumerate((5.0, 3.0, 1.0)):
        k = torch.remainder(hue + n, 6)
        out[:, channel] = value - chroma * torch.minimum(k, 4 - k).clamp_(0, 1)
    return out


def _blur(x: Tensor, sigma: Tensor, most: float) -> Tensor:
    from kornia.filters import gaussian_blur2d  # here, as the import takes a third of a second

    # Three standard deviations of the widest blur to each side, less where the image is smaller than that.
    size = [2 * min(math.ceil(3 * most), side - 1) + 1 for side in x.shape[2:]]
    # A lone gray image is doubled: one plane would go through another convolution of torch's than many planes
    # do, and come out different by a bit.
    num = len(x)
    if x.shape[:2] == (1, 1):
        x, sigma = x.repeat(2, 1, 1, 1), sigma.repeat(2, 1, 1, 1)
    # Views are float32, also where the caller's loop is under autocast.
    with torch.autocast(x.device.type, enabled=False):
        return gaussian_blur2d(x, (size[0], size[1]), sigma.view(-1, 1).expand(-1, 2))[:num]

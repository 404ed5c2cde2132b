"""W-MSE: distances between whitened views (Ermolov, Siarohin, Sangineto and Sebe 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa import dist, rng
from torchjepa.collapse.base import WeightedTerms
from torchjepa.collapse.samples import Over, Samples, check_over
from torchjepa.collapse.stateful import CountingRegularizer


@dataclass(frozen=True)
class WMSELoss(WeightedTerms):
    """The one term of W-MSE.

    Args:
        invariance: the mean squared distance between whitened, normalised views, a scalar from 0 to 4.
    """

    invariance: Float[Tensor, ""]


@dataclass(eq=False)
class WMSE(CountingRegularizer):
    """W-MSE over the global batch: L = mean over pairs of views and samples of 2 - 2 cos(w_a, w_b).

    w = L^-1 (z - mean) for every view apart, with L L^T = (1 - eps) Cov(z) + eps I and Cov divided by n - 1: views
    whose covariance is the identity, so that they cannot collapse. With `sub_batch_size` the samples are shuffled
    and whitened in parts of about that size, `num_shuffles` times, and the losses averaged; the shuffle is of the
    global batch and the same on every process, so that the split over processes changes nothing.

    Samples must outnumber dimensions in every part (with fewer, any batch can be whitened and nothing is learnt); the
    paper takes twice as many.

    Cost, forward, a view and shuffle: 4 n d^2 FLOPs, and d^3 (a Cholesky factor and its inverse, in float64) for
    every part; about twice that backward; memory 4 n d floats and 5 d^2 doubles a part. Across processes d^2 + d
    numbers a part each way.

    Args:
        sub_batch_size: the samples that are whitened together, at least; `None` for the whole batch (the published
            code's default; its CIFAR-10 runs have 128 of 256).
        num_shuffles: how often the samples are dealt out anew; 1 (published code; 4 for its STL-10 and Tiny ImageNet
            runs). One is all that there is to do without sub-batches.
        eps: what the covariance is drawn towards the identity by, from 0 to 1; 1e-6. The published code has 0, which
            a dead dimension makes fail.
        seed: names the stream of shuffles.
        over: "batch" (paper), "time" or "both": what statistics run over, see `AbstractCollapseRegularizer`.

    Raises:
        ValueError: sub_batch_size is below 2, num_shuffles below 1 or without effect, eps not from 0 to 1, or over
            none of the three.
    """

    sub_batch_size: int | None = None
    num_shuffles: int = 1
    eps: float = 1e-6
    seed: int = 0
    over: Over = "batch"

    num_views: ClassVar[tuple[int, int | None]] = (2, None)

    def __post_init__(self) -> None:
        for name, least in (("sub_batch_size", 2), ("num_shuffles", 1)):
            value = getattr(self, name)
            if value is None and name == "sub_batch_size":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"WMSE: {name} must be an integer of at least {least}, got {value!r}.")
        if self.num_shuffles > 1 and self.sub_batch_size is None:
            raise ValueError(
                f"WMSE: num_shuffles = {self.num_shuffles} does nothing without sub_batch_size; give both."
            )
        if not 0.0 <= self.eps <= 1.0:
            raise ValueError(f"WMSE: eps must be from 0 to 1, got {self.eps!r}.")
        check_over("WMSE", self.over)

    def terms(self, samples: Samples) -> WMSELoss:
        """The term of grouped views.

        Args:
            samples: two views or more, checked and grouped.
        """
        n, d = samples.count, samples.views[0].shape[2]
        num_parts = 1 if self.sub_batch_size is None else max(1, n // self.sub_batch_size)
        if n // num_parts <= d:
            raise ValueError(
                f"WMSE: whitening needs more samples than dimensions, got {n // num_parts} samples of {d} dimensions"
                f"{'' if num_parts == 1 else f' in each of {num_parts} sub-batches'}; give it a narrower projector, "
                f"a larger batch{'' if num_parts == 1 else ' or a larger sub_batch_size'}."
            )
        losses = []
        for shuffle in range(self.num_shuffles):
            parts = self._parts(samples, num_parts, shuffle)
            whitened = [
                torch.cat([_whitened(z[:, rows], samples, count, self.eps) for rows, count in parts], dim=1)
                for z in samples.views
            ]
            losses.append(_mean_distance(whitened, samples))
        return WMSELoss(invariance=sum(losses) / len(losses))  # type: ignore[arg-type]

    def _parts(self, samples: Samples, num_parts: int, shuffle: int) -> list[tuple[Tensor | slice, int]]:
        """Which rows of this process are in each sub-batch, and how many samples are in it over all processes."""
        if num_parts == 1:
            return [(slice(None), samples.count)]
        generator = rng.generator(self.seed, "wmse", self.num_calls, shuffle)
        order = torch.randperm(samples.count, generator=generator)
        start = sum(samples.row_counts[: dist.rank()]) if samples.across else 0
        stop = start + samples.views[0].shape[1]
        parts = []
        for part in order.tensor_split(num_parts):
            local = part[(part >= start) & (part < stop)] - start
            parts.append((local.to(samples.views[0].device), len(part)))
        return parts


def _whitened(z: Float[Tensor, "g n d"], samples: Samples, count: int, eps: float) -> Float[Tensor, "g n d"]:
    """Rows of mean zero and, over all processes, covariance one."""
    z = z - samples.sum(z.sum(1, keepdim=True)) / count
    covariance = samples.sum(z.mT @ z) / (count - 1)
    wide = torch.float32 if z.device.type == "mps" else torch.float64
    eye = torch.eye(z.shape[2], dtype=wide, device=z.device)
    factor, failed = torch.linalg.cholesky_ex((1.0 - eps) * covariance.to(wide) + eps * eye)
    if z.device.type == "cpu" and bool(failed.any()) and bool(covariance.isfinite().all()):
        raise ValueError(
            f"WMSE: the covariance over {count} samples is singular, and eps = {eps} does not make up for it; look "
            "for dimensions that are constant or copies of others, or raise eps."
        )
    # Elsewhere a look would make the host wait: the loss of a failed factor is NaN.
    factor = factor.masked_fill(failed[:, None, None] > 0, float("nan"))
    inverse = torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False)
    return z @ inverse.to(z.dtype).mT


def _mean_distance(views: Sequence[Float[Tensor, "g n d"]], samples: Samples) -> Float[Tensor, ""]:
    units = [torch.nn.functional.normalize(view, dim=2) for view in views]
    pairs = list(combinations(units, 2))
    cosines = torch.stack([(a * b).sum((1, 2)) for a, b in pairs]).sum(0)
    return 2.0 - 2.0 * samples.mean_over_groups(samples.sum(cosines)) / (len(pairs) * samples.count)

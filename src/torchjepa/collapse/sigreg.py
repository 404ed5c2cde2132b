"""SIGReg: sketched isotropic Gaussian regularization (Balestriero and LeCun 2025, LeJEPA)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.collapse.base import WeightedTerms
from torchjepa.collapse.epps_pulley import FEW, EppsPulley, SlicedStatistic, StatisticOfFew, draw_slices
from torchjepa.collapse.samples import Over, Samples, check_over
from torchjepa.collapse.stateful import CountingRegularizer


@dataclass(frozen=True)
class SIGRegLoss(WeightedTerms):
    """The one term of SIGReg.

    Args:
        sigreg: the mean Epps-Pulley statistic, a scalar; `SIGReg.ratio` says how far from Gaussian it is.
    """

    sigreg: Float[Tensor, ""]


@dataclass(eq=False)
class SIGReg(CountingRegularizer):
    """SIGReg over the global batch: how far random slices of the embeddings are from N(0, 1).

    x = z A with A `[d, num_slices]` normal, its columns scaled to unit length, drawn anew at every call, the same
    for all views and on all processes;
    T = n sum_k w_k ((mean_n cos(t_k x) - phi(t_k))^2 + (mean_n sin(t_k x))^2) for every slice, with
    phi(t) = exp(-t^2 / 2), t_k = linspace(0, t_max, num_knots), dt their distance, and
    w_k = phi(t_k) [dt, 2 dt, ..., 2 dt, dt]_k; L = the mean of T over slices and views. Views are not centred.

    For embeddings of N(0, I) the loss is `gaussian_value`, 1.053, whatever n (not 0: it is the noise of a sample);
    for a constant batch at zero 0.402 n. The factor n (LeJEPA) makes the gradient of a sample independent of n.

    Entries of A are rounded to half precision before their columns are scaled; every product is float32 or wider.

    Cost, forward and backward, a view of n samples, s slices: 4 n d s FLOPs in two matrix products, 10 cosines and
    sines and about 100 FLOPs an entry of x each way; memory beside input and gradient 2 s d bytes for the slices (once
    for all views), 8 n s for x, and on a CPU blocks of 1 MB and of 1 MB a thread. Across processes one message of
    2 num_knots s numbers, whatever n and d. On a GPU the random bits come from the host, 2 s d bytes a call.

    Args:
        num_slices: number of slices s; 256 (LeJEPA's minimal code; the paper's runs have 1024).
        num_knots: number of knots of the integral; 17 (paper, ablation of the quadrature).
        t_max: the last knot; 3 (paper).
        seed: names the stream of slices.
        over: "batch" (paper), "time" or "both": what statistics run over, see `AbstractCollapseRegularizer`.

    Raises:
        ValueError: num_slices is below 1, num_knots below 2, t_max not positive, or over none of the three.
    """

    num_slices: int = 256
    num_knots: int = 17
    t_max: float = 3.0
    seed: int = 0
    over: Over = "batch"

    num_views: ClassVar[tuple[int, int | None]] = (1, None)

    def __post_init__(self) -> None:
        for name, least in (("num_slices", 1), ("num_knots", 2)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"SIGReg: {name} must be an integer of at least {least}, got {value!r}.")
        if not 0.0 < self.t_max < float("inf"):
            raise ValueError(f"SIGReg: t_max must be a positive number, got {self.t_max!r}; the paper has 3.")
        check_over("SIGReg", self.over)

    @property
    def gaussian_value(self) -> float:
        """The expected loss of embeddings of N(0, I), sum_k w_k (1 - phi(t_k)^2); 1.053 for the defaults."""
        return self._test.gaussian_value

    @property
    def _test(self) -> EppsPulley:
        return EppsPulley(self.num_knots, self.t_max)

    def ratio(self, sigreg: Float[Tensor, ""]) -> Float[Tensor, ""]:
        """The loss in units of what Gaussian embeddings give: 1 is "indistinguishable from N(0, I)".

        Args:
            sigreg: the term, without any weight.
        """
        return sigreg / self.gaussian_value

    def slices(
        self, d: int, call: int | None = None, dtype: torch.dtype = torch.float32
    ) -> Float[Tensor, "d s"]:
        """The slices A of a call, columns of unit length, on the CPU.

        Args:
            d: dimension of the embedding.
            call: the number of calls before it; the next call's by default.
            dtype: in which their length is one.
        """
        key = (self.seed, self.num_calls if call is None else call)
        slices = draw_slices(key, d, self.num_slices, torch.device("cpu"))
        return torch.nn.functional.normalize(slices.double(), dim=0).to(dtype)

    def terms(self, samples: Samples) -> SIGRegLoss:
        """The term of grouped views.

        Args:
            samples: one view or more, checked and grouped.
        """
        z = samples.views[0]
        slices = draw_slices((self.seed, self.num_calls), z.shape[2], self.num_slices, z.device)
        few = len(samples.views) * z.shape[0] * z.shape[1] * self.num_slices <= FEW
        statistic = StatisticOfFew if few else SlicedStatistic
        statistics = statistic.apply(self._test, slices, samples, *samples.views)
        return SIGRegLoss(sigreg=samples.mean_over_groups(statistics))  # type: ignore[arg-type]

"""What is done to the target encoder's tokens before the predictions are compared with them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from torchjepa import dist


@runtime_checkable
class TargetNorm(Protocol):
    """Maps all target tokens of a batch, `[b, n, d]`, to what is to be predicted, of the same shape."""

    def __call__(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """The tokens to predict, `[b, n, d]`."""
        ...


@dataclass(frozen=True)
class LayerNormTargets:
    """Every token standardised over its channels, t = (h - mean_d h) / sqrt(var_d h + eps); no affine part.

    Args:
        eps: added to the variance, 1e-5 (official I-JEPA).
    """

    eps: float = 1e-5

    def __call__(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Normalise `[b, n, d]`."""
        return F.layer_norm(tokens, tokens.shape[-1:], eps=self.eps)


@dataclass(frozen=True)
class PositionStandardize:
    """What is particular to a sample: every position less its mean over the batch, channels at unit variance.

    With tokens h_{ipc} of sample i of b, position p of n and channel c,

        r_ipc = h_ipc - 1/b sum_i h_ipc,   t_ipc = r_ipc / sqrt(1/(b n) sum_ip r_ipc^2 + eps).

    A predictor that knows the position but not the sample can guess the position's mean, which is most of a
    token where pictures are mostly empty or alike; here that guess is worth nothing, and predicting it costs
    the full variance of 1 in every channel. The statistics are those of the micro-batch over all processes,
    in float32 or wider; a target that carries gradient (`ema=None`) carries it through them.

    Args:
        eps: added to the variance, 1e-5.

    Raises:
        ValueError: when called, a batch of fewer than two samples, of which nothing would be left.
    """

    eps: float = 1e-5

    def __call__(self, tokens: Float[Tensor, "b n d"]) -> Float[Tensor, "b n d"]:
        """Standardise `[b, n, d]`; float32 or wider."""
        b, n, d = tokens.shape
        if b < 2 and not dist.is_distributed():
            raise ValueError(
                f"PositionStandardize: a batch must have at least 2 samples, got {b}: each position's mean over "
                f"the batch is subtracted; use larger (micro-)batches or LayerNormTargets()."
            )
        h = tokens.to(torch.promote_types(tokens.dtype, torch.float32))
        # Two passes, mean first, and one reduction for the sums and their count.
        sums = dist.all_reduce_sum(torch.cat([h.sum(0).flatten(), h.new_full((1,), b)]))
        count = sums[-1].detach()
        centered = h - sums[:-1].view(n, d) / count
        variance = dist.all_reduce_sum(centered.square().sum((0, 1))) / (count * n)
        return centered * (variance + self.eps).rsqrt()

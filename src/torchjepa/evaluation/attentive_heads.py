"""Many attentive probes of one batch of tokens at once, for less than the sum of their costs.

Axis letters of this file: `k` probes, `a` attention heads of all probes together, `e` channels of one attention head.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn import AttentiveClassifier


def joint_logits(
    probes: Sequence[AttentiveClassifier], tokens: Float[Tensor, "b n d"]
) -> Float[Tensor, "k b classes"]:
    """The logits of probes of one shape, as calling them one by one gives.

    With depth 1 keys and values are never made. For a query q of an attention head, with the norm's x^ = (x - mean) /
    std, gamma and beta,

        q . (W_k (gamma x^ + beta) + b_k) = (gamma W_k^T q) . x^ + const,  and
        sum_j p_j (W_v (gamma x^_j + beta) + b_v) = W_v (gamma sum_j p_j x^_j + beta) + b_v  as sum_j p_j = 1,

    so a token costs 2 d products a head instead of 2 d^2 a probe, and x^ is shared by all probes. The constant cancels
    in the softmax. Deeper probes go one by one: their blocks change every token.

    Args:
        probes: all with the same configuration.
        tokens: float32, without a gradient.
    """
    if len(probes[0].pooler.blocks):
        return torch.stack([probe(tokens) for probe in probes])
    cross = probes[0].pooler.cross
    stacked = _Stacked(probes)
    x = F.layer_norm(tokens, tokens.shape[-1:], eps=cross.norm1.eps)
    gathered = _gather(stacked, x, cross.num_heads)
    pooled = stacked("pooler.queries")[:, 0] + gathered  # [k, b, d]
    hidden = stacked.norm(pooled, "pooler.cross.norm2", cross.norm2.eps)
    hidden = F.gelu(stacked.linear(hidden, "pooler.cross.mlp.fc1"))
    pooled = pooled + stacked.linear(hidden, "pooler.cross.mlp.fc2")
    return stacked.linear(pooled, "linear")


class _Stacked:
    # The parameters of all probes side by side.
    def __init__(self, probes: Sequence[AttentiveClassifier]) -> None:
        self.probes = probes

    def __call__(self, name: str) -> Tensor:
        return torch.stack([attrgetter(name)(probe) for probe in self.probes])

    def linear(self, x: Tensor, name: str) -> Tensor:
        """Each probe's layer on its own `[b, d]` of `[k, b, d]`."""
        return torch.baddbmm(self(f"{name}.bias")[:, None], x, self(f"{name}.weight").mT)

    def norm(self, x: Tensor, name: str, eps: float) -> Tensor:
        x = F.layer_norm(x, x.shape[-1:], eps=eps)
        return torch.addcmul(self(f"{name}.bias")[:, None], x, self(f"{name}.weight")[:, None])


def _gather(stacked: _Stacked, x: Tensor, num_heads: int) -> Tensor:
    """What the queries of each probe make of normalised tokens `[b, n, d]`: `[k, b, d]`."""
    num, dim = len(stacked.probes), x.shape[-1]
    e = dim // num_heads
    q = stacked.linear(stacked("pooler.queries")[:, 0], "pooler.cross.q")  # [k, 1, d]
    key, value = stacked("pooler.cross.kv.weight").unflatten(1, (2, num_heads, e)).unbind(1)
    gamma, beta = (stacked(f"pooler.cross.norm1.{name}") for name in ("weight", "bias"))
    asked = torch.matmul(q.view(num, num_heads, 1, e) * e**-0.5, key)[:, :, 0] * gamma[:, None]
    weights = torch.bmm(asked.flatten(0, 1).expand(len(x), -1, -1), x.mT).softmax(dim=-1)  # [b, a, n]
    means = torch.bmm(weights, x).view(len(x), num, num_heads, dim).permute(1, 2, 0, 3)  # [k, heads, b, d]
    means = torch.addcmul(beta[:, None, None], means, gamma[:, None, None])
    value_bias = stacked("pooler.cross.kv.bias")[:, dim:].unflatten(1, (num_heads, 1, e))
    values = torch.matmul(means, value.mT) + value_bias
    return values.transpose(1, 2).flatten(2)

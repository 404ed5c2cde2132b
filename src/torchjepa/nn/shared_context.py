"""A cheaper predictor, and another model: its context is computed once for all target blocks of a sample."""

from __future__ import annotations

from functools import partial

import torch
from jaxtyping import Float
from torch import Tensor

from torchjepa.nn.attention import Pattern, attend
from torchjepa.nn.predictor import Predictor


class SharedContextPredictor(Predictor):
    """A `Predictor` whose context does not see the mask tokens, so that all target blocks share it.

    In every layer the tokens c of the context attend to c alone, once a sample, and the mask tokens of block j to
    [c, block j] with one softmax over both; the last layer computes the mask tokens alone. In `Predictor` the
    context attends to the block too and is therefore computed m times: of n context tokens and m blocks of k
    tokens, n + m k go through a layer here, m (n + k) there. For I-JEPA on 14 x 14 tokens that is half of the
    FLOPs, a third with a context eight times as long as a block, 1 / m at best.

    Weights have the names and shapes of `Predictor`'s, and one class loads the other's. Of depth 1 both compute
    the same, because the only layer does not update the context.

    Args and Raises are `Predictor`'s.
    """

    def _lay_out(self, seen: Tensor, asked: Tensor) -> Tensor:
        # One sequence [context, block 1, ..., block m], so that all but attention is one call for all tokens.
        return torch.cat([seen, asked.flatten(1, 2)], dim=1)

    def _pattern(self, num_context: int, num_blocks: int) -> Pattern:
        return partial(_share_context, num_context=num_context, num_blocks=num_blocks)


def _share_context(
    q: Float[Tensor, "b heads n e"],
    k: Float[Tensor, "b heads j e"],
    v: Float[Tensor, "b heads j e"],
    num_context: int,
    num_blocks: int,
) -> Float[Tensor, "b heads n e"]:
    """`attend` where the context sees itself and each block the context and itself; no query of the context, or all."""
    num_asked = k.shape[2] - num_context
    (seen_k, asked_k), (seen_v, asked_v) = (part.split([num_context, num_asked], dim=2) for part in (k, v))
    seen_q, asked_q = q.split([q.shape[2] - num_asked, num_asked], dim=2)
    # The context's keys and values are copied to every block: one fused softmax over both beats two parts of one.
    out = attend(
        _blocks(asked_q, num_blocks).flatten(1, 2),
        _beside_each(seen_k, _blocks(asked_k, num_blocks)),
        _beside_each(seen_v, _blocks(asked_v, num_blocks)),
    )
    out = out.unflatten(1, (-1, num_blocks)).flatten(2, 3)
    return torch.cat([attend(seen_q, seen_k, seen_v), out], dim=2) if seen_q.shape[2] else out


def _blocks(asked: Tensor, num_blocks: int) -> Tensor:
    """`[b, heads, m * k, e]` to `[b, heads, m, k, e]`."""
    return asked.unflatten(2, (num_blocks, -1))


def _beside_each(seen: Tensor, blocks: Tensor) -> Tensor:
    """Context `[b, heads, n, e]` and blocks `[b, heads, m, k, e]` to `[b, heads * m, n + k, e]`."""
    seen = seen[:, :, None].expand(-1, -1, blocks.shape[2], -1, -1)
    return torch.cat([seen, blocks], dim=3).flatten(1, 2)

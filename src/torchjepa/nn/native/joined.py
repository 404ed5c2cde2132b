"""Shapes that the kernels take: rows, and queries, keys and values side by side."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor


def rows_of(x: Float[Tensor, "*r d"]) -> Float[Tensor, "r d"]:
    """All tokens one after the other, contiguous.

    Args:
        x: tokens.
    """
    return x.contiguous().view(-1, x.shape[-1])


def split_heads(joined: Float[Tensor, "*r qkv"], shape: torch.Size, num_heads: int) -> tuple[Tensor, ...]:
    """Queries, keys and values `[b, heads, n, e]` as views of what one product gives.

    Args:
        joined: for each token its queries, keys and values, of all heads.
        shape: `[b, n, d]` of the tokens.
        num_heads: number of heads.
    """
    parts = joined.view(*shape[:-1], 3, num_heads, -1).unbind(2)
    return tuple(part.transpose(1, 2) for part in parts)


def join_heads(
    q: Float[Tensor, "b heads n e"], k: Float[Tensor, "b heads n e"], v: Float[Tensor, "b heads n e"]
) -> Float[Tensor, "b n qkv"]:
    """Undo `split_heads`, by a view where they lie side by side already, as our attention leaves its gradients.

    Args:
        q: queries.
        k: keys.
        v: values.
    """
    batch, heads, tokens, channels = q.shape
    width = heads * channels
    wanted = (tokens * 3 * width, channels, 3 * width, 1)
    places = [part.storage_offset() - q.storage_offset() for part in (q, k, v)]
    owners = {part.untyped_storage()._cdata for part in (q, k, v)}
    if len(owners) == 1 and places == [0, width, 2 * width] and all(p.stride() == wanted for p in (q, k, v)):
        return q.as_strided((batch, tokens, 3 * width), (tokens * 3 * width, 3 * width, 1))
    return torch.stack([part.transpose(1, 2) for part in (q, k, v)], dim=2).flatten(2)

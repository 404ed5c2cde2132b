"""Self-attention and the pre-norm transformer block shared by encoder and predictor.

Axis letters of this file: `j` keys, `e` channels of one head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from torchjepa.nn.hand_written import is_plain
from torchjepa.nn.native import attention as kernels
from torchjepa.nn.native import nodes
from torchjepa.nn.native.structures import may_run_on
from torchjepa.nn.plain_attention import attend_by_products
from torchjepa.nn.recompute import recomputable
from torchjepa.nn.residual import MLP, is_large, linear_add, norm_linear, norm_mlp_add
from torchjepa.nn.rope import Rotation, even_channels_first, rotate_heads

# Queries, keys and values of all heads to what every query gathers, as `attend` has it.
Pattern = Callable[[Tensor, Tensor, Tensor], Tensor]

# Above this the plain product's n x n weights cost more memory than they save time.
_MAX_PLAIN_TOKENS = 1024


def attend(
    q: Float[Tensor, "b heads n e"], k: Float[Tensor, "b heads j e"], v: Float[Tensor, "b heads j e"]
) -> Float[Tensor, "b heads n e"]:
    """softmax(q k^T / sqrt(e)) v, by the kernel that is fastest for the device and dtype.

    On a CPU with products of our own that is ours. Elsewhere it is torch's fused attention but for short bfloat16
    sequences on a CPU that need a gradient, for which its kernel is 3 to 6 times slower than plain matrix products;
    without, it is a quarter faster than they.

    Args:
        q: queries `[b, heads, n, e]`.
        k: keys `[b, heads, j, e]`.
        v: values `[b, heads, j, e]`.

    Returns:
        `[b, heads, n, e]`.
    """
    if may_run_on(q) and kernels.serves(q, k, v):
        return kernels.attend(q, k, v)
    is_short = k.shape[2] <= _MAX_PLAIN_TOKENS
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and is_short and q.requires_grad:
        return attend_by_products(q, k, v)
    return F.scaled_dot_product_attention(q, k, v)


def attend_within(
    q: Float[Tensor, "b heads n e"],
    k: Float[Tensor, "b heads n e"],
    v: Float[Tensor, "b heads n e"],
    lengths: Sequence[int],
) -> Float[Tensor, "b heads n e"]:
    """`attend` where the tokens are runs of these lengths, each of which sees itself alone.

    Args:
        q: queries `[b, heads, n, e]`.
        k: keys, of the same shape.
        v: values, of the same shape.
        lengths: tokens of each run, n in all.

    Returns:
        `[b, heads, n, e]`.
    """
    runs = zip(*(part.split(list(lengths), dim=2) for part in (q, k, v)))
    # Put together in the order in which the heads of a token are neighbours, which spares its reader a copy.
    return torch.cat([attend(*run).transpose(1, 2) for run in runs], dim=1).transpose(1, 2)


def check_heads(dim: int, num_heads: int) -> None:
    """Refuse heads that do not split the channels evenly.

    Args:
        dim: embedding dimension d.
        num_heads: number of heads.

    Raises:
        ValueError: the heads do not divide the dimension.
    """
    if num_heads < 1 or dim % num_heads:
        raise ValueError(
            f"Attention: num_heads must divide the dimension {dim}, got {num_heads}; choose one of its divisors."
        )


class Attention(nn.Module):
    """Multi-head self-attention, y = W_o concat_i softmax(Q_i K_i^T / sqrt(e)) V_i + b_o over heads i.

    Args:
        dim: embedding dimension d.
        num_heads: number of heads, each of e = d / num_heads channels; q, k, v and output have biases.

    Raises:
        ValueError: the heads do not divide the dimension.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(dim, num_heads)
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(
        self,
        x: Float[Tensor, "b n d"],
        num_queries: int | None = None,
        rotation: Rotation | None = None,
        pattern: Pattern = attend,
        residual: Float[Tensor, "b n_out d"] | None = None,
        norm: nn.LayerNorm | None = None,
    ) -> Float[Tensor, "b n_out d"]:
        """Attend within each sequence; with `num_queries` only the last so many tokens ask and come out.

        With `rotation`, the rotary positions of the n tokens, queries and keys are turned. `pattern` says which
        tokens see which, all of them by default; it takes and returns what `attend` does. What comes out is added
        to `residual`, if there is one. With `norm` the tokens go through it first.
        """
        if norm is not None and (num_queries is not None or rotation is not None):
            x, norm = norm(x), None
        if num_queries is None and norm is not None and nodes.serve(x, norm, self.qkv):
            # The stream goes through the node, in whose backward its two gradients meet.
            stream, q, k, v = nodes.norm_heads(x, norm, self.qkv, self.num_heads, is_large(x, self.qkv))
            residual = stream if residual is x else residual
        elif num_queries is None:
            q, k, v = self._heads(x, None, 2, rotation, norm)
        else:
            dim = x.shape[-1]
            asking = None if rotation is None else rotation.last(num_queries)
            (q,) = self._heads(x[:, -num_queries:], slice(dim), 1, asking)
            k, v = self._heads(x, slice(dim, None), 1, rotation)
        gathered = pattern(q, k, v).transpose(1, 2).flatten(2)
        return self.proj(gathered) if residual is None else linear_add(gathered, self.proj, residual)

    def _heads(
        self,
        x: Tensor,
        rows: slice | None,
        num_rotated: int,
        rotation: Rotation | None,
        norm: nn.LayerNorm | None = None,
    ) -> tuple[Tensor, ...]:
        # The parts among queries, keys and values that these rows of the weight give, all rows when absent.
        shape = -1, self.num_heads, x.shape[-1] // self.num_heads
        weight, bias = self.qkv.weight, self.qkv.bias
        if rows is not None:
            weight, bias = weight[rows], bias[rows]
        if rotation is None:
            # The layer itself where it can be: people hook it and quantize it.
            whole = self.qkv if norm is None else partial(norm_linear, norm=norm, linear=self.qkv)
            parts = whole(x) if rows is None else F.linear(x, weight, bias)
            # Taken apart along an inner axis, so that their gradients are put together in place and not copied again.
            return tuple(part.transpose(1, 2) for part in parts.unflatten(-1, shape).unbind(2))
        num_heads = num_rotated * self.num_heads
        order = even_channels_first(len(weight), num_heads, shape[-1], weight.device)
        weight, bias = weight.index_select(0, order), bias.index_select(0, order)
        return rotate_heads(F.linear(x, weight, bias).unflatten(-1, shape), rotation, num_rotated)


class Block(nn.Module):
    """The pre-norm transformer block: x <- x + attention(norm(x)), then x <- x + mlp(norm(x)).

    Args:
        dim: embedding dimension d.
        num_heads: number of attention heads.
        mlp_ratio: width of the MLP's hidden layer over d, 4 in all released models but the giant (48/11) and the
            gigantic (64/13).
        norm_eps: epsilon of the layer norms, 1e-6 in all released encoders and predictors.
    """

    recomputes = False  # switched by `recompute_activations`

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0, norm_eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads)
        self.norm2 = nn.LayerNorm(dim, eps=norm_eps)
        self.mlp = MLP(dim, round(dim * mlp_ratio))

    @recomputable
    def forward(
        self,
        x: Float[Tensor, "b n d"],
        num_queries: int | None = None,
        rotation: Rotation | None = None,
        pattern: Pattern = attend,
    ) -> Float[Tensor, "b n_out d"]:
        """Update the tokens; with `num_queries` only the last so many of each sequence come out.

        With `rotation`, the rotary positions of the n tokens, attention turns queries and keys; `pattern` as in
        `Attention`.
        """
        residual = x if num_queries is None else x[:, -num_queries:]
        if is_plain(self.attn, Attention):
            x = self.attn(x, num_queries, rotation, pattern, residual, self.norm1)
        else:  # who replaces or hooks it expects that it is given what is normalised
            x = self.attn(self.norm1(x), num_queries, rotation, pattern, residual)
        return norm_mlp_add(x, self.norm2, self.mlp)

    def residual_weights(self) -> tuple[Tensor, Tensor]:
        """The two weights that write into the residual stream, which deep networks start smaller."""
        return self.attn.proj.weight, self.mlp.fc2.weight

"""Rotary positions over a `Grid` (V-JEPA 2): queries and keys are turned by angles that say where a token is.

Axis letters of this file: `e` channels of one head, `p` parts of a projection (queries, keys, values).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from torchjepa.nn.positions import GridTables
from torchjepa.types import Grid

Pairing = Literal["correct", "released"]


@dataclass(frozen=True)
class RotaryPositions:
    """Rotary positions for `positions=...` of a `ViT` or a predictor: what V-JEPA 2 has instead of a sin-cos table.

    Of the e channels of a head each axis t, h, w turns n = 2 ((e // 3) // 2), laid out [t | h | w | rest]; the
    rest stays. Adjacent channels are a pair, of which a token at index p along the axis makes

        y[2j]   = x[2j] cos(a) - x[2j+1] sin(a),    y[2j+1] = x[2j+1] cos(b) + x[2j] sin(b),

    where a and b are among the n/2 angles theta_i = p * base^(-i / (n/2)). Sequences and images are videos of
    one row and one frame: their absent axes turn by 0.

    Args:
        pairing: `"correct"`: a = b = theta_j, a rotation (V-JEPA 2.1). `"released"`: a = theta_(2j mod n/2),
            b = theta_(2j+1 mod n/2), neither a rotation nor relative, what the released V-JEPA 2 weights were
            trained with.
        base: the longest period over 2 pi, 10000 as in all released models.
        trained_grid: lengths (t, h, w) of the grid that the weights were trained on, for inputs of other
            sizes: index p of an axis of l tokens becomes p (l_trained - 1) / (l - 1). `None` along an axis, or
            for all, leaves indices as they are (V-JEPA 2; V-JEPA 2.1 has `(None, 16, 16)`).

    Raises:
        ValueError: an unknown pairing, a base that is not positive, or lengths that are no grid.
    """

    pairing: Pairing = "correct"
    base: float = 10000.0
    trained_grid: Sequence[int | None] | None = None

    def __post_init__(self) -> None:
        if self.pairing not in ("correct", "released"):
            raise ValueError(
                f"RotaryPositions: pairing must be 'correct' or 'released', got {self.pairing!r}; weights of "
                f"V-JEPA 2 need 'released', those of V-JEPA 2.1 'correct'."
            )
        if not 0.0 < self.base < math.inf:
            raise ValueError(f"RotaryPositions: base must be positive and finite, got {self.base!r}.")
        if self.trained_grid is not None:
            _check_lengths(self.trained_grid)
            # A tuple again after a trip through JSON, so that equal positions compare equal.
            object.__setattr__(self, "trained_grid", tuple(self.trained_grid))

    @property
    def config(self) -> dict[str, Any]:
        """The arguments, fit for JSON; `RotaryPositions(**config)` is equal."""
        lengths = self.trained_grid
        return asdict(self) | {"trained_grid": None if lengths is None else list(lengths)}


def _check_lengths(lengths: Sequence[int | None]) -> None:
    if len(lengths) != 3 or any(length is not None and length < 1 for length in lengths):
        raise ValueError(
            f"RotaryPositions: trained_grid must be three lengths (t, h, w), each at least 1 or None, got "
            f"{lengths!r}; use (None, 16, 16) for 16 x 16 tokens a frame."
        )


class Rotation(NamedTuple):
    """The factors of given tokens, even channels first: y = x * cos + (-x_odd * sin_even | x_even * sin_odd).

    Args:
        cos: `[b or 1, n, e]`, [even channels | odd channels].
        sin: the same for the sine.
    """

    cos: Float[Tensor, "b n e"]
    sin: Float[Tensor, "b n e"]

    def last(self, num_tokens: int) -> Rotation:
        """The factors of the last tokens alone."""
        return Rotation(self.cos[:, -num_tokens:], self.sin[:, -num_tokens:])


def rotary_angles(
    grid: Grid, head_dim: int, positions: RotaryPositions | None = None
) -> Float[Tensor, "n {head_dim}"]:
    """The angle by which every channel of every token of a grid turns.

    Args:
        grid: the token grid.
        head_dim: channels e of one head.
        positions: pairing, base and interpolation, `RotaryPositions()` by default.

    Returns:
        float64 `[n, e]` on the CPU, radians: a at even channels, b at odd ones (see `RotaryPositions`), 0 at
        channels that do not turn.

    Raises:
        ValueError: fewer than 6 channels or an odd number of them.
    """
    positions = positions or RotaryPositions()
    check_head_dim(head_dim)
    share = 2 * (head_dim // 3 // 2)
    exponent = -torch.arange(share // 2, dtype=torch.float64, device="cpu") / (share // 2)
    frequency = positions.base**exponent
    # The released code tiles the angles where adjacent channels are paired; the correct one repeats each.
    frequency = frequency.repeat(2) if positions.pairing == "released" else frequency.repeat_interleave(2)
    lengths = zip(grid.shape, positions.trained_grid or (None, None, None))
    index = torch.meshgrid(*(_coordinates(length, trained) for length, trained in lengths), indexing="ij")
    parts = [axis.reshape(-1, 1) * frequency for axis in index]
    rest = torch.zeros(grid.num_tokens, head_dim - 3 * share, dtype=torch.float64, device="cpu")
    return torch.cat([*parts, rest], dim=1)


def check_head_dim(head_dim: int) -> None:
    """Refuse heads that cannot turn.

    Args:
        head_dim: channels of one head.

    Raises:
        ValueError: fewer than 6 channels, two for each axis, or an odd number of them.
    """
    if head_dim < 6 or head_dim % 2:
        raise ValueError(
            f"rotary positions: a head must have an even number of channels, at least 6, got {head_dim}; "
            f"choose another number of heads."
        )


def _coordinates(length: int, trained: int | None) -> Tensor:
    index = torch.arange(length, dtype=torch.float64, device="cpu")
    return index if trained is None or length == 1 else index * ((trained - 1) / (length - 1))


class RotaryTables(GridTables):
    """Factors of `RotaryPositions`, computed once for each grid, device and dtype, gathered once a forward.

    Args:
        head_dim: channels of one head.
        positions: pairing, base and interpolation.

    Raises:
        ValueError: fewer than 6 channels or an odd number of them.
    """

    def __init__(self, head_dim: int, positions: RotaryPositions) -> None:
        check_head_dim(head_dim)
        # Plain values, because a compiled graph cannot hold the object they came in.
        super().__init__(_factors, head_dim, positions.pairing, positions.base, positions.trained_grid)

    def rotation(self, grid: Grid, ids: Int64[Tensor, "b n"] | None, like: Tensor) -> Rotation:
        """The factors of the tokens with these ids, all of the grid's when absent, in the dtype of `like`."""
        cos, sin = self(grid, like).unbind(0)
        return Rotation(cos[None], sin[None]) if ids is None else Rotation(cos[ids], sin[ids])


def _factors(grid: Grid, head_dim: int, *settings: Any) -> Tensor:
    angles = rotary_angles(grid, head_dim, RotaryPositions(*settings))
    angles = angles.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1)
    return torch.stack([angles.cos(), angles.sin()])


def even_channels_first(
    num_rows: int, num_heads: int, head_dim: int, device: torch.device
) -> Int64[Tensor, " rows"]:
    """The order of a projection's rows that gives the channels of its first heads as [even ones | odd ones].

    Products of queries and keys do not see the order of their channels. In this one the two of a pair stand in
    two contiguous runs, which makes turning fast; a weight is far smaller than what it gives for a batch.

    Args:
        num_rows: rows of the weight, heads one after the other.
        num_heads: how many heads are to be turned; the rows of the others stay.
        head_dim: channels e of one head.
        device: where the order is wanted.
    """
    rows = torch.arange(num_rows, device=device)
    num_turned = num_heads * head_dim
    turned = rows[:num_turned].view(num_heads, -1, 2).transpose(1, 2).flatten()
    return torch.cat([turned, rows[num_turned:]])


def rotate_heads(
    x: Float[Tensor, "b n p heads e"], rotation: Rotation, num_rotated: int
) -> tuple[Float[Tensor, "b heads n e"], ...]:
    """Split a projection into its parts, with the first ones turned: queries and keys, but not values.

    One pass over all parts to be turned, into memory where each head is contiguous, which attention reads
    faster. A turn is linear, so that the factors are all that is kept for the backward pass, which writes the
    gradient of the whole projection at once.

    Args:
        x: the projection, channels of the parts to be turned in the order of `even_channels_first`.
        rotation: factors of the n tokens, in the dtype of `x`.
        num_rotated: how many parts turn.

    Returns:
        The parts, each `[b, heads, n, e]`.
    """
    cos, sin = rotation.cos[:, None], rotation.sin[:, None]
    if torch.compiler.is_compiling():
        # A compiler fuses the plain formula by itself, and cannot look into writes to given memory.
        parts = x.permute(2, 0, 3, 1, 4).unbind(0)
        return *(_turned(part, cos, sin) for part in parts[:num_rotated]), *parts[num_rotated:]
    return _RotateHeads.apply(x, cos, sin, num_rotated)  # type: ignore[no-any-return]


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    even, odd = x.chunk(2, dim=-1)
    sin_even, sin_odd = sin.chunk(2, dim=-1)
    return x * cos + torch.cat([-odd * sin_even, even * sin_odd], dim=-1)


class _RotateHeads(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: FunctionCtx, x: Tensor, cos: Tensor, sin: Tensor, num_rotated: int
    ) -> tuple[Tensor, ...]:
        ctx.save_for_backward(cos, sin)
        ctx.num_rotated = num_rotated  # type: ignore[attr-defined]
        parts = x.permute(2, 0, 3, 1, 4)
        # Values are copied along, or the projection's memory would live on beside the turned parts.
        out = torch.empty_like(parts, memory_format=torch.contiguous_format)
        sin_even, sin_odd = sin.chunk(2, dim=-1)
        _turn(parts[:num_rotated], cos, -1, sin_even, sin_odd, out[:num_rotated])
        out[num_rotated:].copy_(parts[num_rotated:])
        return out.unbind(0)

    @staticmethod
    @once_differentiable
    def backward(ctx: FunctionCtx, *grads: Tensor) -> tuple[Tensor, None, None, None]:  # type: ignore[override]
        cos, sin = ctx.saved_tensors  # type: ignore[attr-defined]
        b, heads, n, e = grads[0].shape
        grad = grads[0].new_empty(b, n, len(grads), heads, e)
        sin_even, sin_odd = sin.chunk(2, dim=-1)
        for index, (part, out) in enumerate(zip(grads, grad.permute(2, 0, 3, 1, 4).unbind(0))):
            if index < ctx.num_rotated:  # type: ignore[attr-defined]
                _turn(part, cos, 1, sin_odd, sin_even, out)
            else:
                out.copy_(part)
        return grad, None, None, None


def _turn(x: Tensor, cos: Tensor, sign: int, from_odd: Tensor, from_even: Tensor, out: Tensor) -> None:
    # out = x * cos + sign * (x_odd * from_odd | -x_even * from_even): the turn for -1, its transpose for 1.
    even, odd = x.chunk(2, dim=-1)
    torch.mul(x, cos, out=out)
    out_even, out_odd = out.chunk(2, dim=-1)
    out_even.addcmul_(odd, from_odd, value=sign)
    out_odd.addcmul_(even, from_even, value=-sign)

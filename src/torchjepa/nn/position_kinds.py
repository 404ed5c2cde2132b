"""The kinds of positions that a network takes, and the tables that they become."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torchjepa.nn.positions import ResizedPositions, SinCosPositions
from torchjepa.nn.rope import RotaryPositions, RotaryTables

# A sin-cos layout, a sin-cos table to be resized, or rotary ones.
Positions = str | ResizedPositions | RotaryPositions


def resolve_positions(positions: Positions | Mapping[str, Any]) -> Positions:
    """What an argument `positions` stands for.

    Args:
        positions: positions, which stay; `"rope"` for `RotaryPositions()`; or the `config` of some.
    """
    if positions == "rope":
        return RotaryPositions()
    if isinstance(positions, Mapping):
        return ResizedPositions(**positions) if "layout" in positions else RotaryPositions(**positions)
    return positions


def positions_config(positions: Positions) -> str | dict[str, Any]:
    """Positions fit for JSON; `resolve_positions` takes them back."""
    return positions if isinstance(positions, str) else positions.config


def position_tables(positions: Positions, dim: int, num_heads: int) -> SinCosPositions | RotaryTables:
    """The tables of a network: to be added to its tokens, or to turn its queries and keys.

    Args:
        positions: as `resolve_positions` gives them.
        dim: channels of a token.
        num_heads: attention heads that they are split into.

    Raises:
        ValueError: the layout does not name axes, or heads that cannot turn.
    """
    if isinstance(positions, RotaryPositions):
        return RotaryTables(dim // num_heads, positions)
    return SinCosPositions(dim, positions)

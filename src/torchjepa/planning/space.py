"""The actions that a planner may choose: how many numbers, within which bounds."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from torchjepa import _vector_math as _vector_math


@dataclass(frozen=True)
class ActionSpace:
    """Vectors of `dim` numbers within bounds.

    Args:
        dim: length a of an action.
        low: least value, a number for all entries or one for each; none by default.
        high: greatest value, likewise. An entry with low = high is fixed: V-JEPA 2-AC plans with rotations at 0.

    Raises:
        ValueError: dim is not a positive integer, bounds of another length, NaN, or low above high.
    """

    dim: int
    low: float | Sequence[float] = -math.inf
    high: float | Sequence[float] = math.inf

    def __post_init__(self) -> None:
        check_count("ActionSpace", "dim", self.dim)
        for name in ("low", "high"):
            # Tuples, so that a space given lists is as frozen as one given numbers.
            object.__setattr__(self, name, per_entry("ActionSpace", name, getattr(self, name), self.dim))
        for index, (low, high) in enumerate(zip(self._lows, self._highs)):
            if not low <= high or low == math.inf or high == -math.inf:
                raise ValueError(
                    f"ActionSpace: low must not be above high, got {low!r} and {high!r} for entry {index}; an entry "
                    "that may not move has both the same."
                )

    @property
    def _lows(self) -> tuple[float, ...]:
        return self.low  # type: ignore[return-value]

    @property
    def _highs(self) -> tuple[float, ...]:
        return self.high  # type: ignore[return-value]

    def clamp(self, actions: Float[Tensor, "*rest a"]) -> Float[Tensor, "*rest a"]:
        """The nearest actions within the bounds."""
        return actions.clamp(actions.new_tensor(self._lows), actions.new_tensor(self._highs))

    def center(self) -> tuple[float, ...]:
        """The middle of each entry's range; where that is infinite, the allowed number nearest to 0."""
        return tuple(
            (low + high) / 2 if math.isfinite(high - low) else min(max(0.0, low), high)
            for low, high in zip(self._lows, self._highs)
        )

    def spread(self) -> tuple[float, ...]:
        """Half of each entry's range; 1 where that is infinite."""
        return tuple(
            (high - low) / 2 if math.isfinite(high - low) else 1.0
            for low, high in zip(self._lows, self._highs)
        )

    def std(self, who: str, init_std: float | Sequence[float] | None) -> tuple[float, ...]:
        """A standard deviation for each entry; half of its range where none is given, 1 where that is infinite.

        Args:
            who: whose setting, for the message.
            init_std: one number, or one for each entry, or `None`.

        Raises:
            ValueError: a negative or infinite number, or another number of them.
        """
        if init_std is None:
            return self.spread()
        values = per_entry(who, "init_std", init_std, self.dim)
        for value in values:
            check_range(who, "init_std", value, 0.0, sys.float_info.max)
        return values

    def from_uniform(self, unit: Float[Tensor, "*rest a"]) -> Float[Tensor, "*rest a"]:
        """From numbers uniform in [0, 1), actions uniform in their range; center ± spread where that is infinite."""
        center, spread = unit.new_tensor(self.center()), unit.new_tensor(self.spread())
        return self.clamp(center + spread * (2 * unit - 1))


def per_entry(who: str, name: str, value: float | Sequence[float], dim: int) -> tuple[float, ...]:
    """A setting for each entry of an action, given as one number or as `dim`.

    Args:
        who: whose setting, for the message.
        name: its name.
        value: the number or numbers.
        dim: length of an action.

    Raises:
        ValueError: another number of them, or NaN among them.
    """
    values = (float(value),) * dim if isinstance(value, (int, float)) else tuple(map(float, value))
    if len(values) != dim or any(map(math.isnan, values)):
        raise ValueError(
            f"{who}: {name} must be a number, or one for each of the {dim} entries of an action, got {value!r}."
        )
    return values


def check_chunk_size(who: str, chunk_size: int | None) -> None:
    """Refuse anything but `None` or a positive integer.

    Raises:
        ValueError: another value; the message names it.
    """
    if chunk_size is not None:
        check_count(who, "chunk_size", chunk_size)


def check_count(who: str, name: str, value: int, least: int = 1) -> None:
    """Refuse anything but an integer of at least `least`.

    Raises:
        ValueError: another value; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{who}: {name} must be an integer of at least {least}, got {value!r}.")


def check_range(who: str, name: str, value: float, low: float, high: float) -> None:
    """Refuse anything but a number in `[low, high]`.

    Raises:
        ValueError: another value; the message names it.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value <= high:
        raise ValueError(f"{who}: {name} must be a number from {low:g} to {high:g}, got {value!r}.")

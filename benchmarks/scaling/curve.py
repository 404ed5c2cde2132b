"""A curve of cost over size, its exponent, and the verdict on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch

# Logarithms and noise come to 0.1; what outgrows a cache on the way (torch.randperm alone has 1.2 from 1e4 to 1e6) to
# another 0.15. What is quadratic has 1 too many.
TOLERANCE = 0.25
_TAIL = 3


@dataclass(frozen=True)
class Curve:
    """What is measured at which sizes, and how it may grow.

    Args:
        name: what it is, unique: "step over batch".
        axis: what the sizes count: "samples".
        sizes: ascending.
        measure: figures at a size: "seconds", "bytes" and whatever else is to stand in the table.
        most: for each figure that is judged the greatest exponent it may have, 1 for linear, 0 for flat.
        against: the figure that the exponents are over; by default the size itself.
        fresh: whether each size is measured in a process of its own, as memory has to be: what one size has freed
            the next would take without growing. `measure` must be picklable.
    """

    name: str
    axis: str
    sizes: Sequence[int]
    measure: Callable[[int], Mapping[str, float]]
    most: Mapping[str, float]
    against: str | None = None
    fresh: bool = False

    def at(self, size: int) -> Mapping[str, float]:
        """The figures at a size."""
        if not self.fresh:
            return self.measure(size)
        with ProcessPoolExecutor(
            1, get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)
        ) as pool:
            return pool.submit(self.measure, size).result()


@dataclass(frozen=True)
class Measured:
    """A curve that was measured.

    Args:
        name: of the curve.
        axis: what the sizes count.
        against: what the exponents are over.
        most: the greatest exponents.
        rows: for each size its figures, the size itself under the axis' name.
    """

    name: str
    axis: str
    against: str
    most: dict[str, float]
    rows: list[dict[str, float]] = field(default_factory=list)

    @classmethod
    def of(cls, curve: Curve, told: Callable[[str], None]) -> Measured:
        """Measure a curve, size by size."""
        rows = []
        for size in curve.sizes:
            rows.append({curve.axis: float(size), **curve.at(size)})
            told(f"{curve.name}: {', '.join(f'{key} {value:.4g}' for key, value in rows[-1].items())}")
        return cls(curve.name, curve.axis, curve.against or curve.axis, dict(curve.most), rows)

    def exponent(self, figure: str, against: str | None = None) -> float:
        """The slope of log(figure) over log(size) at the larger sizes, where fixed costs no longer flatten it.

        Args:
            figure: what grows.
            against: over what; the curve's own by default.
        """
        rows = self.rows[-_TAIL:]
        x = np.log([row[against or self.against] for row in rows])
        y = np.log([max(row[figure], 1e-12) for row in rows])
        return float(np.polyfit(x, y, 1)[0])

    def verdicts(self) -> list[str]:
        """One line for each figure that is judged."""
        return [self._verdict(figure, most) for figure, most in self.most.items()]

    @property
    def grows_as_it_should(self) -> bool:
        """Whether every judged figure does."""
        return all(self.exponent(figure) <= most + TOLERANCE for figure, most in self.most.items())

    def _verdict(self, figure: str, most: float) -> str:
        slope = self.exponent(figure)
        word = "as it should" if slope <= most + TOLERANCE else "TOO FAST"
        besides = (
            "" if self.against == self.axis else f", over {self.axis} {self.exponent(figure, self.axis):.2f}"
        )
        line = f"{self.name}: {figure} over {self.against} has slope {slope:.2f} (at most {most:g}){besides}"
        return f"{line}: {word}"

    def as_json(self) -> dict[str, Any]:
        """All of it, for `Measured(**...)`."""
        return asdict(self)


def seconds_of(call: Callable[[], object], least: float = 0.3, most: int = 50) -> float:
    """Median seconds of a call, which has run before.

    Args:
        call: what is timed.
        least: it is called until so many seconds have gone by,
        most: or so many times.
    """
    times: list[float] = []
    while not times or (sum(times) < least and len(times) < most):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return float(np.median(times))


def growth_of(call: Callable[[], object]) -> int:
    """Bytes by which this process' resident memory rises at most while a call runs."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = _resident()
    call()
    return max(_resident() - before, 4096)


def _resident() -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))

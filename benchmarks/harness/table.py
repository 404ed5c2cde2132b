"""The table: one row for each comparison, and the same as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rich.table import Table

from benchmarks.harness.comparison import Comparison, Peak
from benchmarks.harness.pairs import Timing

COLUMNS = ("what", "peer", "ours", "theirs", "ratio", "95 % of median", "goal", "x of limit", "apart", "")


@dataclass(frozen=True)
class Row:
    """A measured comparison.

    Args:
        topic: the topic's name.
        spec: what was compared.
        ours: seconds of one call, or bytes.
        theirs: the peer's.
        timing: the samples, where it was time.
    """

    topic: str
    spec: Comparison | Peak
    ours: float
    theirs: float
    timing: Timing | None = None

    @property
    def ratio(self) -> float:
        """Of times peer / ours, more is better; of memory ours / peer, less is better."""
        if self.timing is None:
            return self.ours / max(self.theirs, 1)
        return self.timing.ratio

    @property
    def reached(self) -> bool | None:
        """Whether the goals are met; `None` where there is none."""
        spec, met = self.spec, []
        if spec.goal is not None:
            met.append(self.ratio <= spec.goal if isinstance(spec, Peak) else self.ratio >= spec.goal)
        if isinstance(spec, Comparison) and spec.limit_goal is not None and self.timing is not None:
            met.append((self.timing.of_limit or 0.0) <= spec.limit_goal)
        return all(met) if met else None

    @property
    def fallen(self) -> bool:
        """Whether the ratio is under the bar by more than noise explains."""
        bar = self.spec.bar if isinstance(self.spec, Comparison) else None
        return bar is not None and self.timing is not None and self.timing.interval[1] < bar

    def cells(self) -> list[str]:
        """The row as text."""
        spec, timing = self.spec, self.timing
        goal = "" if spec.goal is None else f"{'at most ' * isinstance(spec, Peak)}{spec.goal:g}"
        mark = {None: "", True: "met", False: "short"}[self.reached]
        if timing is None:
            sizes = [f"{value / 2**20:.0f} MiB" for value in (self.ours, self.theirs)]
            return [spec.name, spec.peer, *sizes, _short(self.ratio), "", goal, "", "", mark]
        low, high = timing.interval
        limit = "" if timing.of_limit is None else f"{timing.of_limit:.2f}"
        if limit and isinstance(spec, Comparison) and spec.limit_goal:
            limit += f" (at most {spec.limit_goal:g})"
        apart = "" if timing.deviation is None else f"{timing.deviation:.0e}"
        times = [_seconds(self.ours), _seconds(self.theirs)]
        spread = f"{_short(low)} to {_short(high)}"
        return [spec.name, spec.peer, *times, _short(self.ratio), spread, goal, limit, apart, mark]

    def as_json(self) -> dict[str, Any]:
        """All figures of the row."""
        spec, timing = self.spec, self.timing
        kind = "bytes" if timing is None else "seconds"
        figures: dict[str, Any] = {
            "ours": self.ours,
            "theirs": self.theirs,
            "unit": kind,
            "ratio": self.ratio,
        }
        if timing is not None:
            figures |= {
                "interval": timing.interval,
                "x_of_limit": timing.of_limit,
                "deviation": timing.deviation,
                "disturbed": timing.disturbed,
                "seconds": dict(timing.seconds),
            }
        goals = {name: getattr(spec, name, None) for name in ("goal", "limit_goal", "bar")}
        return {
            "topic": self.topic,
            "name": spec.name,
            "peer": spec.peer,
            **figures,
            **goals,
            "met": self.reached,
        }


def new_table(title: str) -> Table:
    """An empty table with the columns of `Row.cells`.

    Args:
        title: stands above it.
    """
    table = Table(title=title, title_justify="left")
    for column in COLUMNS:
        table.add_column(column, justify="left" if column in ("what", "peer", "") else "right")
    return table


def _short(ratio: float) -> str:
    return f"{ratio:.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 5 else f"{ratio:.2f}"


def _seconds(value: float) -> str:
    return f"{value:.2f} s" if value >= 1 else f"{1e3 * value:.3g} ms"

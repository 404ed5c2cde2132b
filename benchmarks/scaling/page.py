"""The page: a picture of all curves, the verdicts, and a table of each."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.doctor_zoo.table import markdown, write
from benchmarks.scaling.curve import Measured

_COLUMNS = 3
_COLOURS = {"seconds": "#2a6fbb", "bytes": "#c2571a"}
_MORE_COLOURS = ("#4a4a4a", "#2e8b57", "#8e5ba6", "#b8860b", "#17888f")


def write_page(path: Path, curves: Sequence[Measured]) -> None:
    """Put verdicts and tables between the markers of a page, and the picture beside it.

    Args:
        path: a Markdown file with the markers `<!-- growth: begin -->` and `<!-- growth: end -->`.
        curves: what has been measured.
    """
    picture = path.with_suffix(".svg")
    _draw(picture, curves)
    verdicts = [f"- {line}" for curve in curves for line in curve.verdicts()]
    tables = [f"### {curve.name}\n\n{_table(curve)}" for curve in curves]
    write(path, "growth", "\n\n".join([f"![all curves]({picture.name})", "\n".join(verdicts), *tables]))


def _table(curve: Measured) -> str:
    names = list(curve.rows[0])
    rows = [names, *([_text(name, row[name]) for name in names] for row in curve.rows)]
    return markdown(rows, "r" * len(names))


def _text(name: str, value: float) -> str:
    if name == "seconds":
        return f"{value:.3g} s" if value >= 1 else f"{1e3 * value:.3g} ms"
    if name.endswith("bytes"):
        return f"{value / 1e6:.3g} MB"
    return f"{value:,.0f}" if value < 1e6 else f"{value:.3g}"


def _draw(path: Path, curves: Sequence[Measured]) -> None:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    rows = math.ceil(len(curves) / _COLUMNS)
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "growth", "font.size": 8}):
        figure = Figure(figsize=(3.4 * _COLUMNS, 2.5 * rows), layout="constrained")
        for place, curve in enumerate(curves):
            _panel(figure.add_subplot(rows, _COLUMNS, place + 1), curve)
        figure.savefig(path, metadata={"Date": None})


def _panel(axes: Any, curve: Measured) -> None:
    """Each figure over its value at the largest size, so that time and memory share an axis; dotted: as it may."""
    from matplotlib.ticker import NullFormatter

    x = [row[curve.against] for row in curve.rows]
    others = iter(_MORE_COLOURS)
    for figure, most in curve.most.items():
        y = [row[figure] / curve.rows[-1][figure] for row in curve.rows]
        colour = _COLOURS.get(figure) or next(others)
        axes.loglog(
            x, y, "o-", color=colour, ms=3, lw=1.2, label=f"{figure}, slope {curve.exponent(figure):.2f}"
        )
        axes.loglog(x, [(value / x[-1]) ** most for value in x], ":", color=colour, lw=1)
    axes.set_ylim(min(axes.get_ylim()[0], 0.08), max(axes.get_ylim()[1], 1.3))
    for axis in axes.xaxis, axes.yaxis:
        axis.set_minor_formatter(NullFormatter())  # its labels overlap where there are less than two decades
    axes.set_title(curve.name, fontsize=8.5)
    axes.set_xlabel(curve.against)
    axes.set_ylabel("share of the largest")
    axes.legend(frameon=False, fontsize=7)
    axes.spines[["top", "right"]].set_visible(False)

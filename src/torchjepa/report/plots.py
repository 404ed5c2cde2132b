"""Figures as SVG that stands inside the page and takes its colours and font from it."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Drawn in stand-in colours that become CSS variables, so that one figure reads on light and on dark paper.
_INK, _MUTED = "#010101", "#020202"
_SERIES = ("#030301", "#030302", "#030303", "#030304", "#030305", "#030306")
_VARIABLES = {_INK: "--ink", _MUTED: "--rule"} | {
    colour: f"--series-{number}" for number, colour in enumerate(_SERIES)
}
_MAX_POINTS = 400
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "font.size": 9,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _MUTED,
    "axes.labelcolor": _INK,
    "text.color": _INK,
    "xtick.color": _MUTED,
    "ytick.color": _MUTED,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "axes.grid": True,
    "grid.color": _MUTED,
    "grid.alpha": 0.35,
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "lines.linewidth": 1.6,
}


@dataclass(frozen=True)
class Line:
    """One curve of a figure.

    Args:
        label: its name in the legend.
        x: positions.
        y: values, NaN where there is none.
        dashed: drawn thin and dashed, for a bound or a baseline.
    """

    label: str
    x: Sequence[float] | NDArray[np.float64]
    y: Sequence[float] | NDArray[np.float64]
    dashed: bool = False


def draw_lines(
    name: str,
    lines: Sequence[Line],
    *,
    x_label: str,
    y_label: str,
    log_x: bool = False,
    log_y: bool = False,
    from_zero: bool = False,
) -> str:
    """Curves over a common axis, as an inline SVG element.

    Curves of more than 400 points are drawn as means over equal stretches, with the range from smallest to
    largest shaded.

    Args:
        name: names the figure; makes the ids inside it unique on the page.
        lines: the curves.
        x_label: what runs along x, with its unit.
        y_label: what runs along y, with its unit.
        log_x: logarithmic x axis.
        log_y: logarithmic y axis; values that are not positive are left out.
        from_zero: let the y axis begin at 0.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with matplotlib.rc_context({**_STYLE, "svg.hashsalt": name}):
        figure = Figure(figsize=(4.7, 2.7), layout="constrained")
        axes = figure.add_subplot()
        for colour, line in zip(_colours(lines), lines):
            _draw(axes, line, colour, log_y)
        axes.set(xlabel=x_label, ylabel=y_label)
        axes.grid(visible=True, axis="y")
        axes.grid(visible=False, axis="x")
        if log_x:
            axes.set_xscale("log")
        elif all(np.array_equal(line.x, np.rint(line.x)) for line in lines):
            axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True))  # there is no step 1.5
        if log_y:
            axes.set_yscale("log")
        else:
            axes.ticklabel_format(axis="y", scilimits=(-3, 4), useMathText=False, useOffset=False)
        if from_zero:
            highest = max((np.nanmax(line.y, initial=0.0) for line in lines), default=0.0)
            axes.set_ylim(0.0, max(axes.get_ylim()[1], 1.05 * float(highest)))
        if len(lines) > 1:
            figure.legend(
                loc="outside upper left", ncols=min(3, len(lines)), handlelength=1.4, columnspacing=1.2
            )
        return _inline_svg(figure, name, _describe(lines, x_label, y_label))


def _colours(lines: Sequence[Line]) -> list[str]:
    return [_SERIES[number % len(_SERIES)] for number in range(len(lines))]


def _draw(axes: Axes, line: Line, colour: str, log_y: bool) -> None:
    x, y = np.asarray(line.x, dtype=np.float64), np.asarray(line.y, dtype=np.float64)
    kept = np.isfinite(y) & ((y > 0) | (not log_y))
    x, y = x[kept], y[kept]
    style: dict[str, Any] = {"linestyle": (0, (4, 2)), "linewidth": 1.1} if line.dashed else {}
    if len(x) > _MAX_POINTS:
        pieces = np.array_split(np.arange(len(x)), _MAX_POINTS)
        low, high = ([float(f(y[piece])) for piece in pieces] for f in (np.min, np.max))
        x, y = (np.array([values[piece].mean() for piece in pieces]) for values in (x, y))
        axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    if 0 < len(x) <= 12:
        style |= {"marker": "o", "markersize": 3.5}
    axes.plot(x, y, color=colour, label=line.label, **style)


def _inline_svg(figure: Figure, name: str, description: str) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\sxmlns(:\w+)?="[^"]*"', "", svg).replace("xlink:href", "href")
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)  # it would act on the whole page
    svg = re.sub(r"font-family: [^;]*; |stroke-linejoin: miter; ?", "", svg)
    svg = re.sub(r' d="[^"]*"', lambda path: re.sub(r"(\.\d\d)\d+", r"\1", path[0]), svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var({variable})")
    opening = f'<svg role="img" aria-label="{description}" '
    return re.sub(r'(width|height)="[\d.]+pt" ', "", svg, count=2).replace("<svg ", opening, 1).strip()


def _describe(lines: Sequence[Line], x_label: str, y_label: str) -> str:
    names = ", ".join(line.label for line in lines)
    text = f"{y_label} over {x_label}: {names}"
    return text.replace("&", "and").replace('"', "'").replace("<", "less than")


def draw_spectra(spectra: Mapping[str, NDArray[np.float64]]) -> str:
    """Eigenvalues of feature covariances relative to their largest, over their rank; an inline SVG element.

    Args:
        spectra: name to eigenvalues `[d]`, largest first.
    """
    lines = []
    for label, values in spectra.items():
        values = np.asarray(values, dtype=np.float64)
        top = values[0] if len(values) and values[0] > 0 else 1.0
        # float32 rounding is about 1e-7, squared in an eigenvalue: what lies far below is not signal.
        shown = np.where(values / top > 1e-12, values / top, np.nan)
        lines.append(Line(label, np.arange(1.0, len(values) + 1), shown))
    return draw_lines(
        "spectrum",
        lines,
        x_label="eigenvalue, by rank",
        y_label="relative to the largest",
        log_x=True,
        log_y=True,
    )

"""The line that says how the run goes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.text import Text

from torchjepa.engine.run import Run

# What the line has no room for; metrics.jsonl, TensorBoard and the report have it.
_LEFT_OUT = frozenset({"step", "epoch", "loss", "lr", "weight_decay", "samples_per_second", "seconds"}) | {
    f"health/{name}"
    for name in ("normalized_std", "top_share", "token_share", "target_std", "target_distance")
}


class Progress:
    """One live line on a terminal, a plain line for each row elsewhere.

    It shows step, samples/s, time left, loss and its terms, learning rate, momentum, health and probe.

    Args:
        console: where to write; stdout by default.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self._run: Run | None = None
        self._figures = ""

    def on_start(self, run: Run) -> None:
        """Open the live line."""
        self._run = run
        if run.settings.compile:
            self._console.print(
                "Compiling: the first steps, and the first with each new length of a mask, take up to a minute.",
                soft_wrap=True,
            )
        if self._console.is_terminal:
            self._live = Live(console=self._console, get_renderable=self._line, refresh_per_second=4)
            self._live.start()

    def on_log(self, step: int, row: Mapping[str, Any]) -> None:
        """Take over the figures of a row."""
        self._figures = format_figures(row)
        if self._live is None:
            self._console.print(self._line(), soft_wrap=True)

    def on_end(self, run: Run) -> None:
        """Close the live line, its last state left standing."""
        if self._live is not None:
            self._live.stop()
            self._live = None

    def _line(self) -> Text:
        run = self._run
        if run is None:
            return Text()
        total = run.settings.total_steps
        head = f"step {run.step:>{len(str(total))}}/{total}"
        if run.samples_per_second > 0.0:
            left = (total - run.step) * run.settings.global_batch_size / run.samples_per_second
            head += f"  {run.samples_per_second:.0f} samples/s  {format_seconds(left)} left"
        return Text(f"{head}  {self._figures}".rstrip())


def format_figures(row: Mapping[str, Any]) -> str:
    """A row's figures as `name value` pairs: loss, its terms, learning rate, then everything else.

    Args:
        row: as the engine gives it to `on_log`.
    """
    terms = [name for name in row if name.startswith("loss/")]
    # The doctor's figures are many; it speaks up itself where they matter.
    hidden = {*_LEFT_OUT, *terms, *(name for name in row if name.startswith("doctor/"))}
    rest = [name for name in row if name not in hidden]
    return "  ".join(f"{_label(name)} {_number(row[name])}" for name in ("loss", *terms, "lr", *rest))


def format_seconds(seconds: float) -> str:
    """Time as `0:42`, `12:05` or `3:07:41`.

    Args:
        seconds: at least 0.
    """
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02d}:{second:02d}" if hours else f"{minute}:{second:02d}"


def _label(name: str) -> str:
    return name.removeprefix("loss/").removeprefix("health/").replace("_", " ")


def _number(value: Any) -> str:
    return "-" if value is None else f"{value:.4g}"

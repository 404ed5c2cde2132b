"""One live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import io
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from tests.engine.hooks.test_files import run
from tests.engine.test_loop import go
from torchjepa.engine import Health, Progress
from torchjepa.engine.hooks.progress import format_figures, format_seconds

ROW: dict[str, Any] = {
    "step": 9,
    "epoch": 1.5,
    "loss": 12.34567,
    "loss/invariance": 2.0,
    "loss/variance": 10.34567,
    "lr": 3e-4,
    "weight_decay": 0.05,
    "momentum": 0.996,
    "samples_per_second": 512.0,
    "seconds": 60.0,
    "health/effective_rank": 31.5,
    "health/relative_error": None,
    "probe/knn": 0.8512,
}
FIGURES = (
    "loss 12.35  invariance 2  variance 10.35  lr 0.0003  momentum 0.996  "
    "effective rank 31.5  relative error -  probe/knn 0.8512"
)


def console(width: int = 250, **options: Any) -> tuple[Console, io.StringIO]:
    file = io.StringIO()
    return Console(file=file, width=width, **options), file


def test_figures_read_in_order() -> None:
    assert format_figures(ROW) == FIGURES


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (42, "0:42"), (725, "12:05"), (11261, "3:07:41")]
)
def test_time_left(seconds: float, text: str) -> None:
    assert format_seconds(seconds) == text


def test_plain_lines_without_a_terminal(tmp_path: Path) -> None:
    where, file = console(force_terminal=False, width=40)
    progress, state = Progress(where), run(tmp_path)
    progress.on_start(state)
    state.step, state.samples_per_second = 10, 2.0
    progress.on_log(9, ROW)
    progress.on_end(state)
    assert file.getvalue() == f"step 10/20  2 samples/s  0:40 left  {FIGURES}\n"


def test_one_live_line_on_a_terminal(tmp_path: Path) -> None:
    where, file = console(force_terminal=True)
    progress, state = Progress(where), run(tmp_path)
    progress.on_start(state)
    state.step, state.samples_per_second = 10, 2.0
    progress.on_log(9, ROW)
    state.step = 12  # counts on between two rows
    progress.on_end(state)
    text = re.sub(r"\x1b\[[0-9?;]*[A-Za-z]", "", file.getvalue())
    last = text.strip().splitlines()[-1].strip()
    assert last == f"step 12/20  2 samples/s  0:32 left  {FIGURES}"
    assert file.getvalue().count("\n") == 1, "one line, drawn over and over"


def test_a_narrow_terminal_hides_nothing(tmp_path: Path) -> None:
    where, file = console(force_terminal=True, width=40)
    progress, state = Progress(where), run(tmp_path)
    progress.on_start(state)
    progress.on_log(9, ROW)
    progress.on_end(state)
    assert "probe/knn" in file.getvalue()
    assert "0.8512" in file.getvalue()


def test_a_run_prints_a_line_for_each_row(tmp_path: Path) -> None:
    where, file = console(force_terminal=False)
    go(tmp_path / "run", hooks=(Progress(where), Health(lambda features: {"feature_std": 0.25})))
    lines = file.getvalue().splitlines()
    assert [line.split("/20")[0].split() for line in lines] == [
        ["step", n] for n in ("1", "5", "10", "15", "20")
    ]
    for part in (
        "samples/s",
        "left",
        "loss ",
        "energy ",
        "spread ",
        "lr ",
        "momentum 0.9",
        "feature std 0.25",
    ):
        assert all(part in line for line in lines)

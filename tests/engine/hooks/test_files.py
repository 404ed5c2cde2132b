"""metrics.jsonl and the event files: complete after every row, and as if undisturbed after a resume."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from tests.engine import tiny
from torchjepa.engine import MetricsFile, Run, RunFolder, TensorBoard
from torchjepa.engine.hooks.metrics_file import drop_lines_from


def run(folder: Path, start_step: int = 0) -> Run:
    folder.mkdir(exist_ok=True)
    return Run(
        learner=nn.Linear(1, 1),
        settings=tiny.settings(),
        folder=RunFolder(folder),
        device=torch.device("cpu"),
        num_samples=tiny.NUM_SAMPLES,
        start_step=start_step,
        step=start_step,
    )


def test_a_row_is_on_disk_at_once(tmp_path: Path) -> None:
    hook = MetricsFile()
    hook.on_start(run(tmp_path))
    hook.on_log(4, {"step": 4, "loss": 1.25, "health/rank": math.nan, "momentum": None, "big": math.inf})
    (line,) = RunFolder(tmp_path).metrics.read_text().splitlines()
    expected = {"step": 4, "loss": 1.25, "health/rank": None, "momentum": None, "big": None}
    assert json.loads(line, parse_constant=pytest.fail) == expected
    hook.on_end(run(tmp_path))


@given(cut=st.integers(0, 200), step=st.integers(0, 12))
def test_steps_ahead_and_torn_lines_go(cut: int, step: int, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("metrics") / "metrics.jsonl"
    lines = [json.dumps({"step": number, "loss": 0.5}) + "\n" for number in range(0, 10, 2)]
    text = "".join(lines)[:cut]
    path.write_text(text)
    drop_lines_from(path, step)
    whole = text.count("\n")
    assert path.read_text() == "".join(lines[: min(whole, (step + 1) // 2)])
    assert [each.name for each in path.parent.iterdir()] == ["metrics.jsonl"]


def test_a_missing_file_stays_missing(tmp_path: Path) -> None:
    drop_lines_from(tmp_path / "metrics.jsonl", 3)
    assert not (tmp_path / "metrics.jsonl").exists()


def test_event_files_hold_every_figure_and_the_newest_run_of_a_step(tmp_path: Path) -> None:
    for start_step, scale in ((0, 1.0), (10, 2.0)):
        hook = TensorBoard()
        where = run(tmp_path, start_step)
        hook.on_start(where)
        for step in range(start_step, 15, 5):
            hook.on_log(step, {"step": step, "loss": scale * step, "momentum": None, "loss/energy": 0.5})
        hook.on_end(where)
    events = EventAccumulator(str(RunFolder(tmp_path).tensorboard))
    events.Reload()
    assert sorted(events.Tags()["scalars"]) == ["loss", "loss/energy"]
    assert [(event.step, event.value) for event in events.Scalars("loss")] == [(0, 0.0), (5, 5.0), (10, 20.0)]


@pytest.mark.parametrize("hook", [MetricsFile(), TensorBoard()])
def test_ending_twice_is_harmless(hook: MetricsFile | TensorBoard, tmp_path: Path) -> None:
    hook.on_start(run(tmp_path))
    hook.on_end(run(tmp_path))
    hook.on_end(run(tmp_path))

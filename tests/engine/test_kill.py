"""A run that is killed, again and again, ends with the very bits of one that was left alone."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.engine.processes import Server
from torchjepa.engine import RunFolder, list_checkpoints

SETTINGS = {"total_steps": 150, "checkpoint_every": 2, "log_every": 3, "clip_grad": 0.5}
LEARNER = {"dropout": 0.2}
PROGRAM: dict[str, Any] = {"settings": SETTINGS, "learner": LEARNER}


@pytest.fixture(scope="module")
def undisturbed(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    server.run("run", folder=str(folder), **PROGRAM)
    return folder


def rows(folder: Path) -> list[dict[str, float]]:
    """metrics.jsonl without what the clock says."""
    lines = [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in ("seconds", "samples_per_second")} for line in lines]


def assert_same_run(ours: Path, theirs: Path) -> None:
    a, b = (list_checkpoints(RunFolder(folder).checkpoints) for folder in (ours, theirs))
    assert [checkpoint.step for checkpoint in a] == [checkpoint.step for checkpoint in b]
    tensors, expected = a[0].tensors(), b[0].tensors()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    state, wanted = (c[0].training()["optimizer"]["state"] for c in (a, b))
    assert all(torch.equal(state[i][key], wanted[i][key]) for i in wanted for key in wanted[i])
    assert rows(ours) == rows(theirs)


def wait_for_rows(folder: Path, number: int) -> None:
    metrics = RunFolder(folder).metrics
    deadline = time.monotonic() + 60
    while not metrics.exists() or metrics.read_text().count("\n") < number:
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.002)


def test_sigkill_at_random_moments(server: Server, undisturbed: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    moments = random.Random(0)
    most_rows = 0
    for kill in range(6):
        limits = {"pause": 0.005, "hold_at": 24 * (kill + 1)}
        pid = server.start("run", folder=str(folder), resume=kill > 0, **limits, **PROGRAM)
        wait_for_rows(folder, most_rows + 1)
        time.sleep(moments.uniform(0.0, 0.15))
        os.kill(pid, signal.SIGKILL)
        assert server.wait(pid) == -signal.SIGKILL, server.output()
        most_rows = max(most_rows, RunFolder(folder).metrics.read_text().count("\n"))
    server.run("run", folder=str(folder), resume=True, **PROGRAM)
    assert_same_run(folder, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT], ids=lambda number: number.name)
def test_a_signal_checkpoints_and_exits(
    server: Server, undisturbed: Path, tmp_path: Path, number: signal.Signals
) -> None:
    folder = tmp_path / "run"
    # Ctrl-C, schedulers and containers signal the workers as well; the step at hand still needs them.
    pid = server.start("run", folder=str(folder), pause=0.03, workers=2, **PROGRAM)
    wait_for_rows(folder, 5)
    os.killpg(pid, number)
    assert server.wait(pid) == 0, server.output()
    result = json.loads(Path(f"{folder}-rank0.json").read_text())
    assert result["stopped"] == number.name
    assert 0 < result["step"] < SETTINGS["total_steps"]
    assert list_checkpoints(RunFolder(folder).checkpoints)[0].step == result["step"]
    server.run("run", folder=str(folder), resume=True, **PROGRAM)
    assert_same_run(folder, undisturbed)

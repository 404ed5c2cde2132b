"""Micro-batches give the update of the whole batch, also where the loss couples samples."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine import joined, tiny
from tests.engine.processes import Server
from tests.engine.test_ranks import start_ranks, weights
from torchjepa.engine import MetricsFile, RunFolder, train

SETTINGS: dict[str, Any] = {"total_steps": 6, "log_every": 1, "clip_grad": 0.5}
TOLERANCES = {"float64": {"rtol": 0, "atol": 1e-9}, "float32": {"rtol": 1e-5, "atol": 1e-6}}


def settings(dtype: str, accumulate: int) -> dict[str, Any]:
    # Adam makes a step of the rounding errors where a gradient is 0 (a key's bias), unless eps is above them.
    return {**SETTINGS, "accumulate": accumulate, "eps": 1e-2 if dtype == "float32" else 1e-8}


def go(folder: Path, learner: nn.Module, dtype: str = "float64", **changes: Any) -> None:
    train(
        learner,
        joined.Pictures(dtype),
        num_samples=joined.NUM_SAMPLES,
        settings=tiny.settings(**changes),
        folder=RunFolder.create(folder, {}),
        hooks=(MetricsFile(),),
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


def assert_same_figures(folder: Path, other: Path, tolerance: float) -> None:
    ours, theirs = rows(folder), rows(other)
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    for mine, other_row in zip(ours, theirs):
        for name in mine.keys() - {"samples_per_second", "seconds"}:
            assert mine[name] == pytest.approx(other_row[name], abs=tolerance, rel=tolerance), name


KINDS = ["views", "joint_views", "masked", "predicted", "shared", "tokens", "plain"]


@pytest.mark.parametrize("dtype", ["float64", "float32"])
@pytest.mark.parametrize("kind", KINDS)
def test_four_micro_batches_give_the_run_of_one(kind: str, dtype: str, tmp_path: Path) -> None:
    learners = {}
    for accumulate in (1, 4):
        learners[accumulate] = joined.build(kind, dtype)
        go(tmp_path / str(accumulate), learners[accumulate], dtype, **settings(dtype, accumulate))
    expected = learners[1].state_dict()
    for name, value in learners[4].state_dict().items():
        torch.testing.assert_close(value, expected[name], **TOLERANCES[dtype])
    assert_same_figures(tmp_path / "4", tmp_path / "1", 1e-5)


@pytest.mark.parametrize("kind", ["views", "predicted"])
def test_two_ranks_of_two_micro_batches_give_the_run_of_one(
    kind: str, server: Server, tmp_path: Path
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    arguments = {"kind": kind, "dtype": "float64"}
    server.run("run_joined", folder=str(one), settings=settings("float64", 1), **arguments)
    for pid in start_ranks(server, "run_joined", two, settings=settings("float64", 2), **arguments):
        assert server.wait(pid) == 0, server.output()
    for rank in range(2):
        for name, value in weights(two, rank).items():
            torch.testing.assert_close(value, weights(one)[name], **TOLERANCES["float64"])
    assert_same_figures(two, one, 1e-5)

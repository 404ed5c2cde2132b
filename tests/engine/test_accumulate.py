"""Micro-batches give the update of the whole batch, also where the loss couples samples."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.engine import joined, tiny
from tests.engine.processes import Server
from tests.engine.test_loop import KillAt, assert_equal
from tests.engine.test_ranks import start_ranks, weights
from torchjepa.engine import DivergedError, MetricsFile, RunFolder, train
from torchjepa.types import NonFiniteError

SETTINGS: dict[str, Any] = {"total_steps": 6, "log_every": 1, "clip_grad": 0.5}
TOLERANCES = {"float64": {"rtol": 0, "atol": 1e-9}, "float32": {"rtol": 1e-5, "atol": 1e-6}}


def settings(dtype: str, accumulate: int) -> dict[str, Any]:
    # Adam makes a step of the rounding errors where a gradient is 0 (a key's bias), unless eps is above them.
    return {**SETTINGS, "accumulate": accumulate, "eps": 1e-2 if dtype == "float32" else 1e-8}


def go(
    folder: Path,
    learner: nn.Module,
    dtype: str = "float64",
    *,
    batches: joined.Pictures | None = None,
    hooks: tuple[Any, ...] = (),
    resume: bool = False,
    **changes: Any,
) -> None:
    train(
        learner,
        batches or joined.Pictures(dtype),
        num_samples=joined.NUM_SAMPLES,
        settings=tiny.settings(**changes),
        folder=RunFolder(folder) if resume else RunFolder.create(folder, {}),
        hooks=(MetricsFile(), *hooks),
        resume=resume,
    )


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


def assert_same_figures(folder: Path, other: Path, tolerance: float) -> None:
    ours, theirs = rows(folder), rows(other)
    assert [list(row) for row in ours] == [list(row) for row in theirs]
    for mine, other_row in zip(ours, theirs):
        for name in mine.keys() - {"samples_per_second", "seconds"}:
            assert mine[name] == pytest.approx(other_row[name], abs=tolerance, rel=tolerance), name


KINDS = ["views", "joint_views", "masked", "predicted", "shared", "tokens", "plain", "several"]


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


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_resumed_run_draws_the_slices_of_the_killed_one(accumulate: int, tmp_path: Path) -> None:
    changes = settings("float32", accumulate)
    whole = joined.build("sigreg", "float32")
    go(tmp_path / "whole", whole, "float32", **changes)
    assert whole.regularizer.num_calls == 6  # once for every update, however many micro-batches
    killed = joined.build("sigreg", "float32")
    go(tmp_path / "run", killed, "float32", **changes, hooks=(KillAt(2, signal.SIGTERM),))
    assert killed.regularizer.num_calls == 4
    resumed = joined.build("sigreg", "float32")
    go(tmp_path / "run", resumed, "float32", **changes, resume=True)
    assert resumed.regularizer.num_calls == 6
    assert_equal(resumed, whole)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_regularizer_that_meets_nan_stops_the_run(accumulate: int, tmp_path: Path) -> None:
    pattern = (
        r"stopped at step 3: VICReg: views must be finite, got NaN or infinity: view 1 holds 8 of 64.*"
        r"NaN in the data\. The last good checkpoint is .*step-2\."
    )
    changes = {**settings("float64", accumulate), "checkpoint_every": 2}
    with pytest.raises(DivergedError, match=pattern) as caught:
        go(tmp_path / "run", joined.build("bare"), batches=joined.Pictures(bad_at=3), **changes)
    assert caught.value.step == 3
    assert isinstance(caught.value.__cause__, NonFiniteError)
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1, 2]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_it_stops_all_ranks(accumulate: int, server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = {"training": "run_joined", "kind": "views", "bad_at": 3, "bad_row": 4}
    for pid in start_ranks(server, "diverge", folder, settings=settings("float64", accumulate), **arguments):
        assert server.wait(pid) == 0, server.output()
    found = [json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in range(2)]
    assert [each["step"] for each in found] == [3, 3]
    assert all("VICReg: views must be finite" in each["error"] for each in found)

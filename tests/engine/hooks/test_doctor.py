"""The doctor is asked when it is due, speaks up when its verdict changes, and can end the run."""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.engine.processes import Server
from tests.engine.test_loop import go, rows
from tests.engine.test_ranks import results, start_ranks
from tests.engine.tiny import TinyLearner
from torchjepa.engine import Doctor, RunFolder, list_checkpoints
from torchjepa.engine.hooks.doctor import join_steps
from torchjepa.types import Loss


class Verdict(StrEnum):
    GOOD = "healthy"
    BAD = "dimensional collapse"
    WORSE = "complete collapse"
    OPEN = "too few samples to tell"

    @property
    def exit_code(self) -> int:
        return {"GOOD": 0, "OPEN": 2}.get(self.name, 1)


@dataclass(frozen=True)
class Evidence:
    figure: str
    value: float
    expected: str


@dataclass(frozen=True)
class Finding:
    verdict: Verdict
    evidence: tuple[Evidence, ...] = (
        Evidence("encoder/rank", 1.23456, "at least 8"),
        Evidence("encoder/std", 0.5, "at least 0.1"),
        Evidence("third", 3.0, "4"),
    )
    advice: tuple[str, ...] = ("Raise the weight.", "Second.")


@dataclass(frozen=True)
class Diagnosis:
    verdict: Verdict
    figures: Mapping[str, float] = field(
        default_factory=lambda: {"encoder/rank": 1.23456, "odd": float("nan")}
    )

    @property
    def exit_code(self) -> int:
        return self.verdict.exit_code

    @property
    def findings(self) -> Sequence[Finding]:
        return () if self.verdict is Verdict.GOOD else (Finding(self.verdict),)

    def to_json(self) -> dict[str, Any]:
        return {"verdict": self.verdict.value, "exit_code": self.exit_code}


class Script:
    """Gives one verdict after the other, and notes what it was asked."""

    def __init__(self, *verdicts: Verdict) -> None:
        self.verdicts: Iterator[Verdict] = iter(verdicts)
        self.features: list[Mapping[str, Tensor]] = []
        self.histories: list[list[Mapping[str, Any]]] = []

    def __call__(self, features: Mapping[str, Tensor], *, history: Sequence[Mapping[str, Any]]) -> Diagnosis:
        self.features.append(features)
        self.histories.append(list(history))
        return Diagnosis(next(self.verdicts))


def told(folder: Path, *verdicts: Verdict, **changes: Any) -> list[str]:
    """What a run with these verdicts, one every four steps, says of them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        go(folder, hooks=(Doctor(Script(*verdicts), 4),), **{"total_steps": 4 * len(verdicts), **changes})
    return [str(each.message) for each in caught if str(each.message).startswith("Step")]


def checks(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(folder).doctor.read_text().splitlines()]


def test_a_check_is_in_the_row_and_in_the_file(tmp_path: Path) -> None:
    script = Script(Verdict.GOOD, Verdict.OPEN, Verdict.GOOD)
    go(tmp_path / "run", hooks=(Doctor(script, 8),), log_every=100)
    found = {row["step"]: row.get("doctor/unhealthy", "none") for row in rows(tmp_path / "run")}
    assert found == {0: "none", 7: 0.0, 15: None, 19: 0.0}
    row = rows(tmp_path / "run")[1]
    assert (row["doctor/encoder/rank"], row["doctor/odd"]) == (1.23456, None)
    assert [(check["step"], check["exit_code"]) for check in checks(tmp_path / "run")] == [
        (7, 0),
        (15, 2),
        (19, 0),
    ]


def test_the_doctor_sees_the_rows_so_far_and_todays_learning_rate(tmp_path: Path) -> None:
    script = Script(*[Verdict.GOOD] * 3)
    go(tmp_path / "run", hooks=(Doctor(script, 8),), log_every=5)
    assert [row["step"] for row in script.histories[1]] == [0, 4, 7, 9, 14, 15]
    assert script.histories[1][-1] == {"step": 15, "lr": 0.05 / 16}
    assert "loss" in script.histories[1][0]


def test_a_warning_names_verdict_figures_and_knob_once_for_each_change(tmp_path: Path) -> None:
    good, bad, worse, open_ = Verdict.GOOD, Verdict.BAD, Verdict.WORSE, Verdict.OPEN
    said = told(tmp_path / "run", open_, good, bad, bad, open_, bad, worse, good, good)
    assert said == [
        "Step 11: dimensional collapse. encoder/rank 1.23 (at least 8), encoder/std 0.5 (at least 0.1). "
        "Raise the weight.",
        "Step 27: complete collapse. encoder/rank 1.23 (at least 8), encoder/std 0.5 (at least 0.1). "
        "Raise the weight.",
        "Step 31: healthy again, no more complete collapse.",
    ]


def test_what_was_said_before_a_resume_is_not_said_again(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    assert len(told(folder, Verdict.BAD, Verdict.BAD, total_steps=8, checkpoint_every=4)) == 1
    for path in (RunFolder(folder).checkpoints / "step-8").iterdir():
        path.unlink()
    (RunFolder(folder).checkpoints / "step-8").rmdir()
    assert told(folder, Verdict.BAD, total_steps=8, checkpoint_every=4, resume=True) == []
    assert [check["step"] for check in checks(folder)] == [3, 7]


def test_stop_ends_the_run_with_a_checkpoint(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with pytest.warns(UserWarning, match="Step 7: dimensional collapse"):
        result, _ = go(folder, hooks=(Doctor(Script(Verdict.OPEN, Verdict.BAD), 4, "stop"),))
    assert (result.step, result.stopped) == (9, "the doctor (dimensional collapse)")
    assert list_checkpoints(RunFolder(folder).checkpoints)[0].step == 9
    result, _ = go(folder, resume=True)
    assert (result.step, result.stopped) == (20, None)


def test_an_unhealthy_last_step_leaves_the_run_whole(tmp_path: Path) -> None:
    with pytest.warns(UserWarning, match="Step 19"):
        result, _ = go(tmp_path / "run", hooks=(Doctor(Script(Verdict.BAD), 100, "stop"),))
    assert (result.step, result.stopped) == (20, None)


def test_two_ranks_stop_together(server: Server, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    for pid in start_ranks(server, "stop_by_hook", folder, at=6):
        assert server.wait(pid) == 0, server.output()
    main, other = results(folder)
    assert (main["step"], main["stopped"]) == (8, "enough")
    assert (other["step"], other["stopped"]) == (8, "a hook")
    assert list_checkpoints(RunFolder(folder).checkpoints)[0].step == 8


def test_few_samples_are_joined_over_steps(tmp_path: Path) -> None:
    script = Script(*[Verdict.GOOD] * 2)
    go(tmp_path / "run", hooks=(Doctor(script, 18),))
    # 8 samples a step: 16 steps of them at the first check, 2 more until the last.
    assert [len(features["encoder"]) for features in script.features] == [128, 16]
    assert script.features[0]["encoder"].dtype == torch.float32


def test_joining_takes_the_drift_out_and_keeps_mean_and_spread() -> None:
    draws = np.random.default_rng(0)
    steps = [draws.normal(size=(2048, 3)) * [1, 2, 3] + 5 + drift for drift in (0.0, 40.0, -10.0)]
    joined = join_steps([torch.from_numpy(each) for each in steps]).numpy()
    np.testing.assert_allclose(joined.mean(0), np.concatenate(steps).mean(0), rtol=1e-5)
    np.testing.assert_allclose(joined.std(0), [1, 2, 3], rtol=0.05)
    pairs = join_steps([torch.from_numpy(each[:2]) for each in np.split(steps[0], 1024)]).numpy()
    np.testing.assert_allclose(pairs.std(0), [1, 2, 3], rtol=0.05)
    single = [torch.full((1, 2), float(i)) for i in range(4)]
    assert torch.equal(join_steps(single), torch.cat(single))


def test_a_learner_without_features_is_left_alone(tmp_path: Path) -> None:
    doctor = Doctor(Script(), 1)

    class Mute(TinyLearner):
        def loss(self, batch: Any, step: int) -> Loss:
            loss = super().loss(batch, step)
            return Loss(loss.total, loss.terms)

    result, _ = go(tmp_path / "run", Mute(), hooks=(doctor,))
    assert result.step == 20


@pytest.mark.parametrize(
    ("every", "on_collapse", "message"),
    [
        (0, "warn", "Doctor: every must be at least 1, got 0"),
        (1, "abort", "Doctor: on_collapse must be 'warn' or 'stop', got 'abort'"),
    ],
)
def test_what_cannot_be_is_refused(every: int, on_collapse: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Doctor(Script(), every, on_collapse)

"""Health and probe figures reach the rows, when they are due and only then."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine.test_loop import go, rows
from tests.engine.tiny import TinyLearner
from torchjepa.engine import Health, Probe, Run
from torchjepa.types import Loss


def test_health_is_measured_for_rows_only(tmp_path: Path) -> None:
    seen = []

    def measure(features: Mapping[str, Tensor]) -> dict[str, float]:
        seen.append(features["encoder"].shape)
        return {"feature_std": features["encoder"].std(0).mean()}  # type: ignore[dict-item]

    go(tmp_path / "run", hooks=(Health(measure),), log_every=5)
    assert seen == [(8, 4)] * 5
    table = rows(tmp_path / "run")
    assert [row["step"] for row in table] == [0, 4, 9, 14, 19]
    assert all(isinstance(row["health/feature_std"], float) for row in table)


def test_health_is_of_the_last_micro_batch(tmp_path: Path) -> None:
    seen = []
    hook = Health(lambda features: seen.append(features["encoder"].shape) or {})
    go(tmp_path / "run", hooks=(hook,), total_steps=1, accumulate=2)
    assert seen == [(4, 4)]


def test_a_probe_gets_rows_of_its_own_and_an_evaluated_learner(tmp_path: Path) -> None:
    learner = TinyLearner()

    def probe(model: nn.Module) -> dict[str, float]:
        assert model is learner
        assert not model.training
        assert not torch.is_grad_enabled()
        return {"knn": 0.5}

    go(tmp_path / "run", learner, hooks=(Probe(8, probe),), log_every=10)
    figures = {row["step"]: row.get("probe/knn") for row in rows(tmp_path / "run")}
    assert figures == {0: None, 7: 0.5, 9: None, 15: 0.5, 19: 0.5}
    assert learner.training


def test_a_probe_does_not_change_the_run(tmp_path: Path) -> None:
    learners = [TinyLearner(dropout=0.3) for _ in range(2)]
    go(tmp_path / "plain", learners[0])
    go(tmp_path / "probed", learners[1], hooks=(Probe(3, lambda model: {"draw": float(torch.rand(()))}),))
    ours, theirs = (learner.state_dict() for learner in learners)
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_probe_below_every_step_is_refused() -> None:
    with pytest.raises(ValueError, match="Probe: every must be at least 1, got 0"):
        Probe(0, lambda learner: {})


class Witness:
    """Notes what it is told; returns a figure after step 6, which has no row."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def on_start(self, run: Run) -> None:
        self.events.append(("start", run.start_step, run.step))

    def on_step(self, run: Run, step: int, loss: Loss) -> Mapping[str, float] | None:
        assert run.step == step + 1
        assert run.num_samples_seen == run.step * 8
        return {"seen": 6.0} if step == 6 else None

    def on_log(self, step: int, row: Mapping[str, Any]) -> None:
        self.events.append((step, row.get("seen")))

    def on_end(self, run: Run) -> None:
        self.events.append(("end", run.step))


def test_hooks_are_told_in_turn(tmp_path: Path) -> None:
    witness = Witness()
    go(tmp_path / "run", hooks=(witness,), total_steps=10)
    assert witness.events == [("start", 0, 0), (0, None), (4, None), (9, 6.0), ("end", 10)]


def test_hooks_are_ended_after_an_error(tmp_path: Path) -> None:
    witness = Witness()
    with pytest.raises(RuntimeError, match="at step 3"):
        go(tmp_path / "run", TinyLearner(bad_at=3), hooks=(witness,))
    assert witness.events[-1] == ("end", 4)

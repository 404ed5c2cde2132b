"""The loop in one process: the update, resuming, refusing, and stopping for a bad number."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.engine import tiny
from torchjepa.engine import (
    DivergedError,
    MetricsFile,
    Run,
    RunFolder,
    TrainResult,
    list_checkpoints,
    train,
)
from torchjepa.types import Batch, Loss

PLAIN: dict[str, Any] = {"batch_norm": False, "dropout": 0.0}


def go(
    folder: Path,
    learner: nn.Module | None = None,
    *,
    hooks: tuple[Any, ...] = (),
    resume: bool = False,
    batches: Any = tiny.batches,
    **changes: Any,
) -> tuple[TrainResult, nn.Module]:
    learner = learner or tiny.TinyLearner()
    where = RunFolder(folder) if resume or folder.exists() else RunFolder.create(folder, {})
    result = train(
        learner,
        batches,
        num_samples=tiny.NUM_SAMPLES,
        settings=tiny.settings(**changes),
        folder=where,
        hooks=(MetricsFile(), *hooks),
        resume=resume,
    )
    return result, learner


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in RunFolder(folder).metrics.read_text().splitlines()]


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in list_checkpoints(RunFolder(folder).checkpoints)]


class KillAt:
    """Sends this very process a signal after a step."""

    def __init__(self, step: int, number: signal.Signals) -> None:
        self.step, self.number = step, number

    def on_step(self, run: Run, step: int, loss: Loss) -> None:
        if step == self.step:
            os.kill(os.getpid(), self.number)


def assert_equal(ours: nn.Module, theirs: nn.Module) -> None:
    mine, other = ours.state_dict(), theirs.state_dict()
    assert all(torch.equal(mine[name], other[name]) for name in other)


def test_the_update_against_a_bare_loop(tmp_path: Path) -> None:
    result, trained = go(tmp_path / "run", clip_grad=0.3)
    assert result == TrainResult(step=20, stopped=None, is_main=True)
    learner = tiny.TinyLearner()
    settings = tiny.settings()
    decayed = [p for p in learner.parameters() if p.requires_grad and p.ndim > 1]
    spared = [p for p in learner.parameters() if p.requires_grad and p.ndim <= 1]
    adamw = torch.optim.AdamW([{"params": decayed}, {"params": spared}], foreach=False, fused=False)
    sampler = tiny.KeyedSampler(tiny.NUM_SAMPLES, 8, seed=0, total_steps=20)
    for step, batch in enumerate(tiny.batches(sampler, torch.device("cpu"))):
        for group, decay in zip(adamw.param_groups, (settings.weight_decay(step), 0.0)):
            group.update(lr=settings.learning_rate(step), weight_decay=decay)
        learner.loss(batch, step).total.backward()
        nn.utils.clip_grad_norm_(decayed + spared, 0.3)
        adamw.step()
        adamw.zero_grad()
        learner.after_step(step)
    for name, value in learner.state_dict().items():
        torch.testing.assert_close(trained.state_dict()[name], value, rtol=1e-5, atol=1e-6)


def test_rows_and_checkpoints_come_when_due(tmp_path: Path) -> None:
    go(tmp_path / "run", total_steps=13, log_every=4, checkpoint_every=6, clip_grad=1.0)
    table = rows(tmp_path / "run")
    assert [row["step"] for row in table] == [0, 3, 7, 11, 12]
    assert steps(tmp_path / "run") == [13, 12]
    names = ["step", "epoch", "loss", "loss/energy", "loss/spread", "grad_norm", "lr", "weight_decay"]
    assert list(table[0]) == [*names, "momentum", "samples_per_second", "seconds"]
    assert table[2]["epoch"] == 8 * 8 / tiny.NUM_SAMPLES
    assert table[2]["lr"] == tiny.falling(7)
    assert table[2]["loss"] == pytest.approx(table[2]["loss/energy"] + 0.1 * table[2]["loss/spread"])


def test_accumulating_gives_the_same_run(tmp_path: Path) -> None:
    _, once = go(tmp_path / "once", tiny.TinyLearner(**PLAIN), clip_grad=0.3)
    _, twice = go(tmp_path / "twice", tiny.TinyLearner(**PLAIN), clip_grad=0.3, accumulate=2)
    for name, value in once.state_dict().items():
        torch.testing.assert_close(twice.state_dict()[name], value, rtol=0, atol=1e-6)
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("once", "twice")]
    assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_a_batch_that_does_not_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"8 does not split evenly .* 3 micro-batch"):
        go(tmp_path / "run", accumulate=3)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("last", [6, 19])
def test_a_stopped_run_goes_on_bit_for_bit(number: signal.Signals, last: int, tmp_path: Path) -> None:
    _, whole = go(tmp_path / "whole", tiny.TinyLearner(dropout=0.3))
    hooks = (KillAt(last - 1, number),)  # seen after the step that follows
    result, _ = go(tmp_path / "run", tiny.TinyLearner(dropout=0.3), hooks=hooks)
    assert result == TrainResult(last + 1, number.name, True)
    assert steps(tmp_path / "run")[0] == last + 1
    other = tiny.TinyLearner(dropout=0.3)
    nn.init.zeros_(other.encoder.weight)
    go(tmp_path / "run", other, resume=True)
    assert_equal(other, whole)
    losses = [[(row["step"], row["loss"]) for row in rows(tmp_path / name)] for name in ("run", "whole")]
    assert losses[0] == losses[1]


def test_a_signal_during_the_last_step_is_not_lost(tmp_path: Path) -> None:
    result, _ = go(tmp_path / "run", hooks=(KillAt(19, signal.SIGTERM),))
    assert result == TrainResult(20, "SIGTERM", True)


def test_autocast_is_on_for_one_device(tmp_path: Path) -> None:
    seen = []

    class Spy(tiny.TinyLearner):
        def loss(self, batch: Batch, step: int) -> Loss:
            seen.append((self.encoder(batch.views[0]).dtype, batch.views[0].dtype))
            return super().loss(batch, step)

    go(tmp_path / "run", Spy(), total_steps=1, precision="bf16-mixed")
    assert seen == [(torch.bfloat16, torch.float32)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_bad_loss_stops_the_run_and_names_the_step(bad: float, tmp_path: Path) -> None:
    pattern = r"stopped at step 12: the loss is NaN or infinite\. The last good checkpoint is .*step-10\."
    with pytest.raises(DivergedError, match=pattern) as caught:
        go(tmp_path / "run", tiny.TinyLearner(bad_at=12, bad=bad))
    assert caught.value.step == 12
    assert steps(tmp_path / "run") == [10, 5]
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 4, 9]
    go(tmp_path / "run", tiny.TinyLearner(), resume=True)
    assert steps(tmp_path / "run") == [20, 15]


def test_a_bad_loss_before_any_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"at step 0: .*There is no checkpoint yet\."):
        go(tmp_path / "run", tiny.TinyLearner(bad_at=0))


def test_a_bad_state_is_never_saved(tmp_path: Path) -> None:
    class Poisoned(tiny.TinyLearner):
        def after_step(self, step: int) -> None:
            self.target.bias.data[0] = math.inf if step == 9 else 0.0

    with pytest.raises(DivergedError, match="at step 9: weights or optimizer state hold NaN or infinity"):
        go(tmp_path / "run", Poisoned())
    assert steps(tmp_path / "run") == [5]


def test_batches_that_end_early_are_named(tmp_path: Path) -> None:
    def few(sampler: Any, device: torch.device) -> Any:
        return (batch for batch, _ in zip(tiny.batches(sampler, device), range(4)))

    with pytest.raises(ValueError, match="The batches ended at step 4"):
        go(tmp_path / "run", batches=few)


def test_a_module_that_is_no_learner_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="methods loss, after_step, encode and scheduled, got Linear"):
        go(tmp_path / "run", nn.Linear(2, 2))


def test_a_loss_that_is_no_scalar_is_refused(tmp_path: Path) -> None:
    class Several(tiny.TinyLearner):
        def loss(self, batch: Batch, step: int) -> Loss:
            return Loss(self.encoder(batch.views[0]))

    with pytest.raises(ValueError, match=r"Several\.loss gave a total of shape \[8, 4\]; expected a scalar"):
        go(tmp_path / "run", Several())


def test_numpy_numbers_do_not_spoil_the_checkpoint(tmp_path: Path) -> None:
    numpy = pytest.importorskip("numpy")
    go(tmp_path / "run", total_steps=5, learning_rate=lambda step: numpy.float64(0.01))
    checkpoint = list_checkpoints(RunFolder(tmp_path / "run").checkpoints)[0]
    assert checkpoint.training()["identity"]["learning_rate"] == [0.01] * 4


def test_frozen_parts_and_the_target_are_left_to_the_learner(tmp_path: Path) -> None:
    _, learner = go(tmp_path / "run")
    assert isinstance(learner, tiny.TinyLearner)
    assert all(not p.requires_grad and p.grad is None for p in learner.target.parameters())


@pytest.mark.slow
def test_compiled_parts_train_alike(tmp_path: Path) -> None:
    _, plain = go(tmp_path / "plain", tiny.TinyLearner(**PLAIN), total_steps=4)
    _, compiled = go(tmp_path / "compiled", tiny.TinyLearner(**PLAIN), total_steps=4, compile=True)
    assert not any("forward" in vars(part) for part in compiled.modules())
    expected: dict[str, Tensor] = plain.state_dict()
    for name, value in compiled.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)

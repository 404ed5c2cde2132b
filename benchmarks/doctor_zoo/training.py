"""A training run of the zoo: torchjepa's engine, then accuracies and what the doctor is to look at."""

from __future__ import annotations

import copy
import json
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor_zoo.case import Scores
from benchmarks.doctor_zoo.data import Nuisance, digits, judged
from torchjepa.engine import DivergedError, RunFolder, TrainSettings, train
from torchjepa.engine.hooks import Health, MetricsFile
from torchjepa.evaluation import Features, knn_accuracy, linear_accuracy, measure_health
from torchjepa.nn.pooling import MeanPool
from torchjepa.schedules import CosineSchedule, WarmupCosine

NUISANCE = Nuisance(shift=0.12, background=0.4, stroke=0.5, noise=0.05)
_STRENGTH = 0.01
_CHUNK = 256
_MEAN = MeanPool()


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a run is trained.

    Args:
        steps: length of the schedules.
        stop: step after which it is cut off, `None` for none.
        batch_size: samples of an update.
        lr: peak learning rate, reached after a tenth of the steps.
        weight_decay: throughout.
        seed: of data and masks; networks are seeded by their own.
        final: learning rate at the end of the schedule.
    """

    steps: int = 400
    stop: int | None = None
    batch_size: int = 128
    lr: float = 3e-3
    weight_decay: float = 0.01
    seed: int = 0
    final: float = 1e-6

    def settings(self) -> TrainSettings:
        """For the engine."""
        return TrainSettings(
            total_steps=self.steps,
            global_batch_size=self.batch_size,
            learning_rate=WarmupCosine(
                base=self.lr,
                start=0.0,
                final=self.final,
                warmup_steps=self.steps // 10,
                total_steps=self.steps,
            ),
            weight_decay=CosineSchedule(
                start=self.weight_decay, final=self.weight_decay, total_steps=self.steps
            ),
            seed=self.seed,
            accelerator="cpu",
            log_every=max(1, self.steps // 40),
            checkpoint_every=self.steps,
        )


class _Stop:
    """Ends a run after a step."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step(self, run: Any, step: int, loss: Any) -> dict[str, float]:
        if step + 1 == self.step:
            run.stop("cut off")
        return {}


def fit(learner: nn.Module, batches: Any, training: Training) -> list[dict[str, Any]]:
    """Train in place; the rows of metrics.jsonl, up to where it diverged if it did."""
    hooks: list[Any] = [Health(measure_health), MetricsFile()]
    if training.stop is not None:
        hooks.append(_Stop(training.stop))
    with tempfile.TemporaryDirectory() as place:
        folder = RunFolder.create(Path(place) / "run", {})
        num_samples = len(digits("train")[0])
        try:
            result = train(
                learner,
                batches,
                num_samples=num_samples,
                settings=training.settings(),
                folder=folder,
                hooks=hooks,
            )
            if result.step < (training.stop or training.steps):
                raise KeyboardInterrupt(result.stopped)
        except DivergedError:
            pass
        learner.eval()
        return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def untrained(encoder: nn.Module, nuisance: Nuisance = NUISANCE) -> nn.Module:
    """A copy of an encoder at step 0 whose batch norms know the data, as an honest baseline's do."""
    encoder = copy.deepcopy(encoder).train()
    norms: list[Any] = [part for part in encoder.modules() if hasattr(part, "running_mean")]
    for norm in norms:
        norm.momentum = 1.0
    with torch.no_grad():
        encoder(judged("train", nuisance, 1)[0])
    return encoder.eval()


@torch.no_grad()
def apply(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """A function of a batch, chunk by chunk."""
    return torch.cat([function(chunk) for chunk in x.split(_CHUNK)])


def pooled(encoder: nn.Module, x: Tensor, pool: Callable[[Tensor], Tensor] = _MEAN) -> Tensor:
    """One vector for each picture."""
    return apply(lambda chunk: pool(encoder(chunk)), x)


def score(
    encoder: nn.Module,
    before: nn.Module,
    nuisance: Nuisance = NUISANCE,
    pool: Callable[[Tensor], Tensor] = _MEAN,
) -> Scores:
    """kNN (20) and linear accuracies, each digit in two views, trained and untrained."""
    accuracies = [_accuracies(each, nuisance, pool) for each in (encoder, before)]
    (knn, linear), (untrained_knn, untrained_linear) = accuracies
    assert untrained_knn is not None
    assert untrained_linear is not None
    return Scores(knn, linear, untrained_knn, untrained_linear)


def _accuracies(
    encoder: nn.Module, nuisance: Nuisance, pool: Callable[[Tensor], Tensor]
) -> tuple[float | None, float | None]:
    sets = []
    for part in ("train", "test"):
        x, labels = judged(part, nuisance, 2)
        features = pooled(encoder, x, pool)
        if not bool(torch.isfinite(features).all()):
            return None, None
        sets.append(Features(features, labels, torch.arange(len(labels))))
    return knn_accuracy(*sets), linear_accuracy(*sets, strengths=(_STRENGTH,))

"""A learner that trains in milliseconds and has what a real one has: EMA, batch norm, terms; and its data."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from torchjepa import dist, rng
from torchjepa.engine import KeyedSampler, TrainSettings
from torchjepa.types import Batch, BatchKeys, Loss

NUM_SAMPLES = 37
IN_DIM = 6


class TinyLearner(nn.Module):
    """Predicts a slowly moving copy of itself; `bad_at` makes the loss of one step `bad` (on one rank)."""

    def __init__(
        self,
        *,
        embed_dim: int = 4,
        batch_norm: bool = True,
        dropout: float = 0.0,
        bad_at: int | None = None,
        bad: float = math.nan,
        bad_rank: int = 0,
    ) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = nn.Linear(IN_DIM, embed_dim)
            self.norm = nn.BatchNorm1d(embed_dim) if batch_norm else nn.Identity()
            self.predictor = nn.Sequential(nn.Dropout(dropout), nn.Linear(embed_dim, embed_dim))
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        self._bad = (bad_at, bad_rank, bad)

    def loss(self, batch: Batch, step: int) -> Loss:
        x = batch.views[0]
        z = self.encoder(x)
        prediction = self.predictor(self.norm(z))
        energy = (prediction - self.target(x) - batch.views[1]).square().mean()
        spread = z.square().mean()
        total = energy + 0.1 * spread
        if (step, dist.rank()) == self._bad[:2]:
            total = total * self._bad[2]
        terms = {"energy": energy.detach(), "spread": spread.detach()}
        return Loss(total, terms, {"encoder": z.detach()})

    @torch.no_grad()
    def after_step(self, step: int) -> None:
        for ours, theirs in zip(self.target.parameters(), self.encoder.parameters()):
            ours.lerp_(theirs, 0.1)

    def encode(self, x: Tensor) -> Tensor:
        return self.target(x)[:, None]

    def scheduled(self, step: int) -> Mapping[str, float]:
        return {"momentum": 0.9}


class TinyData(Dataset[Batch]):
    """Asked for the keys of a micro-batch; noise depends on sample and epoch, as augmentation does."""

    def __init__(self, num_samples: int) -> None:
        self.data = torch.randn(num_samples, IN_DIM, generator=rng.generator(0, "tiny"))

    def __getitem__(self, keys: BatchKeys) -> Batch:
        noise = [
            torch.randn(4, generator=rng.generator(0, "noise", epoch, index))
            for epoch, index in zip(keys.epochs, keys.indices)
        ]
        ids = torch.tensor(keys.indices)
        views = (self.data[ids], 0.1 * torch.stack(noise))
        return Batch(views, ids, torch.full_like(ids, -1), keys.row_start, keys.global_size)


def batches(sampler: KeyedSampler, device: torch.device) -> Iterator[Batch]:
    data = TinyData(sampler.num_samples)
    for keys in sampler:
        yield data[keys].to(device)


def as_it_is(batch: Batch) -> Batch:
    return batch


def settings(**changes: Any) -> TrainSettings:
    values: dict[str, Any] = {
        "total_steps": 20,
        "global_batch_size": 8,
        "learning_rate": falling,
        "weight_decay": constant(0.05),
        "accelerator": "cpu",
        "log_every": 5,
        "checkpoint_every": 5,
    }
    return TrainSettings(**{**values, **changes})


def falling(step: int) -> float:
    return 0.05 / (1 + step)


def constant(value: float) -> Callable[[int], float]:
    return lambda step: value

"""Clips of digits that wander over the canvas: healthy encoders and predictors, frozen ones, copying ones."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor_zoo.case import Material
from benchmarks.doctor_zoo.data import SIDE, DigitBatches, Nuisance, digits, place
from benchmarks.doctor_zoo.joint import conv
from benchmarks.doctor_zoo.training import Training, fit, score, untrained
from torchjepa import rng
from torchjepa.collapse import named_terms
from torchjepa.nn import Projector
from torchjepa.nn.pooling import MeanPool
from torchjepa.types import Batch, Loss

NUM_FRAMES = 8
_JUDGED = Nuisance(shift=0.3, background=0.0, stroke=0.0, noise=0.05)  # single frames


def clips(pictures: Tensor, generator: torch.Generator, *, moving: bool = True) -> Tensor:
    """Digits that turn and slide at a speed of their own, `[b, t, 1, 16, 16]`, a little noise in each frame."""
    b, t = len(pictures), NUM_FRAMES
    draw = torch.rand(b, 1, 6, generator=generator) * 2 - 1
    time = torch.linspace(-1, 1, t)[None, :, None] * float(moving)
    shift = 0.15 * draw[..., 0:2] + 0.35 * time * draw[..., 2:4]
    angle = (0.3 * draw[..., 4:5] + 0.8 * time * (1.0 + 0.3 * draw[..., 5:6])).flatten()
    frames = place(pictures.repeat_interleave(t, 0), torch.full((b * t,), 1.4), shift.flatten(0, 1), angle)
    frames = frames + 0.05 * torch.randn(frames.shape, generator=generator)
    return ((frames - 0.3) / 0.4).view(b, t, 1, SIDE, SIDE)


class FrameLearner(nn.Module):
    """Embeds frames, and predicts each frame's embedding from the two before it.

    L = regularizer(z) + stillness * mean |z_{t+1} - z_t|^2 + mean |g(sg z_{t-1}, sg z_t) - sg z_{t+1}|^2.

    Args:
        regularizer: of embeddings `[b, t, e]`.
        stillness: pulls the frames of a clip together; what an invariance over time does.
        skip: the predictor adds its output, times this, to the last frame; `None` for no skip.
        moving: whether the clips move.
        seed: of weights and clips.
    """

    def __init__(
        self, regularizer: Any, *, stillness: float, skip: float | None, moving: bool, seed: int
    ) -> None:
        super().__init__()
        self.encoder = conv(seed=seed)
        self.projector = Projector(64, 128, 64, num_layers=2, seed=seed)
        self.predictor = Projector(128, 128, 64, num_layers=2, seed=seed)
        self.skip = skip
        self.regularizer = regularizer
        self.stillness, self.moving, self.seed = stillness, moving, seed
        self.pool = MeanPool()

    def embed(self, frames: Tensor) -> tuple[Tensor, Tensor]:
        """Pooled features and embeddings of clips `[b, t, 1, h, w]`, both `[b, t, .]`."""
        pooled = self.pool(self.encoder(frames.flatten(0, 1)))
        return pooled.unflatten(0, frames.shape[:2]), self.projector(pooled).unflatten(0, frames.shape[:2])

    def predict(self, z: Tensor) -> Tensor:
        """Embeddings of frames 2, 3, ... `[b, t - 2, e]`."""
        before = torch.cat([z[:, :-2], z[:, 1:-1]], dim=2)
        step = self.predictor(before.flatten(0, 1)).unflatten(0, before.shape[:2])
        return step if self.skip is None else z[:, 1:-1] + self.skip * step

    def loss(self, batch: Batch, step: int) -> Loss:
        frames = clips(
            digits("train")[0][batch.ids], rng.generator(self.seed, "zoo clips", step), moving=self.moving
        )
        h, z = self.embed(frames)
        prediction, target = self.predict(z.detach()), z[:, 2:].detach()
        energy = (prediction - target).square().mean()
        still = self.stillness * (z[:, 1:] - z[:, :-1]).square().mean()
        parts = self.regularizer.compute(z)
        terms = {"prediction": energy.detach(), "stillness": still.detach(), **named_terms(parts)}
        features = {
            "encoder": h[:, 0],
            "prediction": prediction.flatten(0, 1),
            "target": target.flatten(0, 1),
        }
        return Loss(energy + still + parts.total(), terms, {name: x.detach() for name, x in features.items()})

    def after_step(self, step: int) -> None: ...

    def scheduled(self, step: int) -> dict[str, float]:
        return {}

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x)


@dataclass(frozen=True, kw_only=True)
class Video:
    """A run on clips; called, it trains and measures."""

    regularizer: Any
    stillness: float = 0.0
    skip: float | None = None
    moving: bool = True
    training: Training = field(default_factory=lambda: Training(steps=200, batch_size=48))

    def __call__(self) -> Material:
        """Train, judge and look."""
        seed = self.training.seed
        learner = FrameLearner(
            copy.deepcopy(self.regularizer),
            stillness=self.stillness,
            skip=self.skip,
            moving=self.moving,
            seed=seed,
        )
        before = untrained(learner.encoder, _JUDGED)
        rows = fit(learner, DigitBatches(_JUDGED, seed, num_views=1), self.training)
        return Material(video_features(learner), rows, score(learner.encoder, before, _JUDGED))


@torch.no_grad()
def video_features(learner: FrameLearner) -> dict[str, Tensor]:
    """What the doctor looks at: of 256 clips of training digits."""
    frames = clips(digits("train")[0][:256], rng.generator(1, "zoo clips"), moving=learner.moving)
    h, z = learner.embed(frames)
    prediction = learner.predict(z)
    return {
        "encoder": h.flatten(0, 1)[::2],
        "projector": z.flatten(0, 1)[::2],
        "time": z,
        "prediction": prediction.flatten(0, 1),
        "target": z[:, 2:].flatten(0, 1),
        "context": z[:, 1:-1].flatten(0, 1),
    }

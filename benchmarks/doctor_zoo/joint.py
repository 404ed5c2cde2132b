"""Joint embeddings of two views: healthy runs, and the same with a knob turned the wrong way."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor_zoo.case import Material
from benchmarks.doctor_zoo.data import DigitBatches, Nuisance, digits, judged
from benchmarks.doctor_zoo.training import NUISANCE, Training, apply, fit, pooled, score, untrained
from torchjepa import rng
from torchjepa.models import JointEmbedding
from torchjepa.nn import ConvEncoder, FanInStd, Projector, ViT
from torchjepa.nn.pooling import MeanPool


def conv(**changes: Any) -> ConvEncoder:
    """Three convolutions, 2 x 2 places of 64 channels."""
    return ConvEncoder(
        **{"in_channels": 1, "widths": (16, 32, 64), "depths": (0, 0, 0), "strides": (2, 2, 2), **changes}
    )


def vit(**changes: Any) -> ViT:
    """Two blocks over 4 x 4 patches, 64 channels."""
    sizes = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2, "image_size": 16, "in_channels": 1}
    return ViT(**{**sizes, "init_std": FanInStd(1.0), **changes})


@dataclass(frozen=True, kw_only=True)
class Joint:
    """A joint-embedding run; called, it trains and measures.

    Args:
        regularizer: the loss on the two embeddings.
        encoder: makes the encoder from a seed.
        projector: hidden and output width, `None` for none.
        training: how it is trained.
        pool: from tokens to a vector.
        training_pool: another one while training.
        nuisance: what differs between the views.
    """

    regularizer: Any
    encoder: Callable[..., nn.Module] = conv
    projector: tuple[int, int] | None = (128, 128)
    training: Training = field(default_factory=Training)
    pool: Any = field(default_factory=MeanPool)
    training_pool: Any = None
    nuisance: Nuisance = NUISANCE

    def learner(self) -> JointEmbedding:
        """The learner at step 0."""
        encoder: Any = self.encoder(seed=self.training.seed)
        width = self.pool.out_dim(encoder.embed_dim)
        projector = (
            nn.Identity()
            if self.projector is None
            else Projector(width, *self.projector, seed=self.training.seed)
        )
        pool = self.training_pool or self.pool
        return JointEmbedding(encoder, projector, regularizer=copy.deepcopy(self.regularizer), pool=pool)

    def __call__(self) -> Material:
        """Train, judge and look."""
        learner = self.learner()
        before = untrained(learner.encoder, self.nuisance)
        rows = fit(learner, DigitBatches(self.nuisance, self.training.seed), self.training)
        scores = score(learner.encoder, before, self.nuisance, self.pool)
        return Material(joint_features(learner, self.pool, self.nuisance), rows, scores)


def joint_features(learner: JointEmbedding, pool: Any, nuisance: Nuisance) -> dict[str, Tensor]:
    """What the doctor looks at, of training digits in evaluation mode."""
    x = judged("train", nuisance, 1)[0][:1024]
    encoder = pooled(learner.encoder, x, pool)
    pictures = digits("train")[0][:200]
    draws = rng.generator(0, "zoo surrogate classes")
    views = [pooled(learner.encoder, nuisance.view(pictures, draws), pool) for _ in range(4)]
    features = {
        "encoder": encoder,
        "tokens": apply(learner.encoder, x[:128]),
        "views": torch.stack(views, dim=1),
    }
    if not isinstance(learner.projector, nn.Identity):
        features["projector"] = apply(learner.projector, encoder)
    return features


class RandomToken:
    """One token of each sample, drawn anew at every call."""

    def __call__(self, tokens: Tensor) -> Tensor:
        b, n, _ = tokens.shape
        return tokens[torch.arange(b), torch.randint(n, (b,))]


class AlikeTokens(nn.Module):
    """An encoder followed by a layer that all but replaces tokens by their mean.

    Args:
        encoder: the encoder.
        kept: how much of what is particular to a token is left.
    """

    def __init__(self, encoder: Any, kept: float = 0.05) -> None:
        super().__init__()
        self.encoder, self.kept, self.embed_dim, self.grid = encoder, kept, encoder.embed_dim, encoder.grid

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        tokens = self.encoder(x, ids)
        mean = tokens.mean(1, keepdim=True)
        return mean + self.kept * (tokens - mean)

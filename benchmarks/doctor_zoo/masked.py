"""I-JEPA on digits: healthy runs, and the same with a part missing."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.doctor_zoo.case import Material
from benchmarks.doctor_zoo.data import DigitBatches, Nuisance, digits, judged
from benchmarks.doctor_zoo.training import Training, apply, fit, pooled, score, untrained
from torchjepa import rng
from torchjepa.ema import EMA
from torchjepa.energy import SmoothL1Energy
from torchjepa.masking import MultiBlockMasking
from torchjepa.models import IJEPA, PositionStandardize
from torchjepa.nn import ConvStemViT, FanInStd, Predictor, Projector
from torchjepa.nn.pooling import MeanPool
from torchjepa.types import Batch

# What all patches of a picture share would be predicted first: little of it.
PLAIN = Nuisance(shift=0.12, background=0.1, stroke=0.3, noise=0.05)
SHORT = Training(steps=250, batch_size=96, lr=2e-3, weight_decay=0.05)
# On 4 x 4 tokens: a context of 3 x 3 less two targets of one or two tokens.
_MASK = MultiBlockMasking(num_targets=2, target_scale=(0.06, 0.13), context_scale=(0.55, 0.58), min_context=7)


def stem_vit(**changes: Any) -> ConvStemViT:
    """Two blocks over 4 x 4 places, 64 channels, no positions."""
    sizes = {"patch_size": 4, "embed_dim": 64, "depth": 2, "num_heads": 2, "image_size": 16, "in_channels": 1}
    more = {"stem_width": 16, "positions": "none", "init_std": FanInStd(0.5)}
    return ConvStemViT(**{**sizes, **more, **changes})


def narrow_predictor() -> nn.Module:
    """One block of 32 channels."""
    return Predictor(encoder_dim=64, embed_dim=32, depth=1, num_heads=1, init_std=FanInStd(0.5))


@dataclass(frozen=True, kw_only=True)
class Masked:
    """An I-JEPA run; called, it trains and measures.

    Args:
        regularizer: beside the prediction, or `None`.
        ema: of the target encoder, or `None` for one shared encoder.
        projector: hidden and output width, `None` for none.
        target_norm: what is done to the targets.
        energy: between prediction and target.
        encoder: makes the encoder from a seed.
        predictor: makes the predictor.
        num_mask_draws: glimpses of each picture.
        training: how it is trained.
        nuisance: what differs from picture to picture.
    """

    regularizer: Any = None
    ema: EMA | None = field(default_factory=lambda: EMA(0.98))
    projector: tuple[int, int] | None = None
    target_norm: Any = field(default_factory=PositionStandardize)
    energy: Any = field(default_factory=SmoothL1Energy)
    encoder: Callable[..., Any] = stem_vit
    predictor: Callable[[], nn.Module] = narrow_predictor
    num_mask_draws: int = 1
    training: Training = field(
        default_factory=lambda: Training(steps=250, batch_size=96, lr=2e-3, weight_decay=0.05)
    )
    nuisance: Nuisance = PLAIN

    def learner(self) -> IJEPA:
        """The learner at step 0."""
        encoder = self.encoder(seed=self.training.seed)
        return IJEPA(
            encoder,
            self.predictor(),
            mask=_MASK,
            energy=self.energy,
            ema=self.ema,
            regularizer=copy.deepcopy(self.regularizer),
            projector=None
            if self.projector is None
            else Projector(encoder.embed_dim, *self.projector, num_layers=2),
            target_norm=self.target_norm,
            num_mask_draws=self.num_mask_draws,
            seed=self.training.seed,
        )

    def __call__(self) -> Material:
        """Train, judge and look."""
        learner = self.learner()
        before = untrained(learner.encoder, self.nuisance)
        rows = fit(learner, DigitBatches(self.nuisance, self.training.seed, num_views=1), self.training)
        scores = score(learner.deployable_encoder, before, self.nuisance)
        return Material(masked_features(learner, self.nuisance), rows, scores)


@torch.no_grad()
def masked_features(learner: IJEPA, nuisance: Nuisance) -> dict[str, Tensor]:
    """What the doctor looks at, in evaluation mode: of 1,024 whole pictures, and of 256 masked ones."""
    x = judged("train", nuisance, 1)[0][:1024]
    encoder = pooled(learner.deployable_encoder, x)
    few = x[:256]
    batch = Batch((few,), torch.arange(len(few)), digits("train")[1][:256])
    loss = learner.loss(batch, step=0)
    rows = slice(0, 2048)
    features = {
        "encoder": encoder,
        "tokens": apply(learner.encoder, few[:128]),
        "target_tokens": loss.features["target_tokens"][:128],
        "prediction": loss.features["prediction"][rows],
        "target": loss.features["target"][rows],
        "context": _copied(learner, batch)[rows],
    }
    if not isinstance(learner.projector, nn.Identity):
        features["projector"] = apply(learner.projector, encoder)
    return features


def _copied(learner: IJEPA, batch: Batch) -> Tensor:
    """What a predictor would give that answers every question with the mean of what is seen, `[b * m * k, d]`."""
    x = batch.views[0]
    masks = learner.draw_masks(learner.encoder.grid(tuple(x.shape[2:])), batch, 0)  # type: ignore[operator]
    wanted = learner.targets(x)[1]
    seen = wanted[torch.arange(len(x))[:, None], masks.context]
    asked = masks.targets.shape[1] * masks.targets.shape[2]
    return MeanPool()(seen)[:, None].expand(-1, asked, -1).flatten(0, 1)


class WithHead(nn.Module):
    """An encoder whose tokens go through a linear layer, so that nothing fixes their scale."""

    def __init__(self, encoder: Any) -> None:
        super().__init__()
        self.encoder, self.embed_dim, self.grid = encoder, encoder.embed_dim, encoder.grid
        self.head = nn.Linear(encoder.embed_dim, encoder.embed_dim, bias=False)
        nn.init.normal_(self.head.weight, std=encoder.embed_dim**-0.5, generator=rng.generator(0, "zoo head"))

    def forward(self, x: Tensor, ids: Tensor | None = None) -> Tensor:
        return self.head(self.encoder(x, ids))


class MeanOfContext(nn.Module):
    """A predictor without a parameter that matters: every answer is the mean of the context."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(64))

    def forward(self, context: Tensor, context_ids: Tensor, target_ids: Tensor, grid: Any) -> Tensor:
        mean = context.mean(1)[:, None, None] + self.bias
        return mean.expand(-1, *target_ids.shape[1:], -1)

"""Small learners with a loss that couples samples, and pictures whose micro-batches differ in their means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from torchjepa import rng
from torchjepa.collapse import SIGReg, VCReg, VICReg
from torchjepa.ema import EMA
from torchjepa.engine import KeyedSampler
from torchjepa.masking import RandomMasking
from torchjepa.models import IJEPA, JointEmbedding
from torchjepa.nn import Predictor, Projector, ViT
from torchjepa.types import Batch

NUM_SAMPLES = 37


def encoder() -> ViT:
    return ViT(image_size=8, patch_size=4, in_channels=1, embed_dim=8, depth=1, num_heads=2, seed=1)


def build(kind: str, dtype: str = "float64") -> nn.Module:
    projector = Projector(8, 12, 6, num_layers=2, seed=2)
    if kind == "views":
        learner: nn.Module = JointEmbedding(encoder(), projector, regularizer=VICReg())
    elif kind == "bare":
        learner = JointEmbedding(encoder(), nn.Identity(), regularizer=VICReg())
    elif kind == "sigreg":
        learner = JointEmbedding(encoder(), projector, regularizer=SIGReg(num_slices=8))
    elif kind == "joint_views":
        learner = JointEmbedding(encoder(), projector, regularizer=VCReg(), joint_views=True)
    else:
        changes: dict[str, Any] = {
            "masked": {"regularizer": VICReg(), "num_mask_draws": 2},
            "predicted": {"regularizer": VICReg(), "projector": projector, "ema": EMA(0.9)},
            "shared": {"regularizer": VCReg(), "projector": projector, "ema": None},
            "tokens": {"regularizer": VCReg(), "regularizer_pool": None, "ema": None},
            "plain": {},
            # Two contexts of other lengths, two views: one call of the encoder.
            "several": {"mask": [RandomMasking(0.5), RandomMasking(0.75)], "target_layers": [0]},
        }[kind]
        predictor = Predictor(encoder_dim=8, embed_dim=8, depth=1, num_heads=2, seed=3)
        learner = IJEPA(encoder(), predictor, **({"mask": RandomMasking(0.5, num_targets=1)} | changes))
    return learner.to(getattr(torch, dtype))


class Pictures:
    """Two views of every sample; a sample's mean grows with its place, so that no two micro-batches are alike.

    The micro-batch that starts with row `bad_row` has a NaN in its second view at step `bad_at`.
    """

    def __init__(self, dtype: str = "float64", bad_at: int = -1, bad_row: int = 0) -> None:
        self.dtype = getattr(torch, dtype)
        self.bad = bad_at, bad_row

    def __call__(self, sampler: KeyedSampler, device: torch.device) -> Iterator[Batch]:
        for keys in sampler:
            rows = [
                torch.randn(2, 1, 8, 8, generator=rng.generator(0, "pictures", epoch, index)) + 0.3 * place
                for place, (epoch, index) in enumerate(zip(keys.epochs, keys.indices), start=keys.row_start)
            ]
            views = torch.stack(rows).to(device, self.dtype).unbind(1)
            if (keys.step, keys.row_start) == self.bad:
                views[1][0, 0, 0, 0] = torch.nan
            ids = torch.tensor(keys.indices, device=device)
            yield Batch(views, ids, torch.full_like(ids, -1), keys.row_start, keys.global_size)

"""I-JEPA: predict the target encoder's tokens of hidden blocks of an image from visible ones (Assran et al. 2023)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from torchjepa.ema import EMA
from torchjepa.energy import EnergyFn, SmoothL1Energy
from torchjepa.models.masked import MaskedJEPA
from torchjepa.types import Encoder, MaskSampler

_DEFAULT_ENERGY = SmoothL1Energy()
_DEFAULT_EMA = EMA(0.996)


class IJEPA(MaskedJEPA):
    """I-JEPA (arXiv 2301.08243): `MaskedJEPA` with the energy and the momentum of the paper's code.

    L = mean over target tokens of smooth_l1(predictor(encoder(x, context), targets),
                                             layer_norm(target_encoder(x))[targets]).

    Args:
        encoder: the context encoder, any with the ViT's call. The target encoder is a copy of it.
        predictor: as in `MaskedJEPA`; predicts every target block on its own.
        mask: one mask or several; the paper's is `MultiBlockMasking()`.
        energy: smooth L1 with beta 1 (as released).
        ema: momentum 0.996 throughout by default. As released it rises linearly to 1:
            `EMA(0.996, LinearMomentumSchedule(0.996, total_steps=...))`.
        parts: further arguments of `MaskedJEPA`.

    Raises:
        ValueError: as `MaskedJEPA`.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: nn.Module,
        *,
        mask: MaskSampler | Sequence[MaskSampler],
        energy: EnergyFn = _DEFAULT_ENERGY,
        ema: EMA | None = _DEFAULT_EMA,
        **parts: Any,
    ) -> None:
        super().__init__(encoder, predictor, mask=mask, energy=energy, ema=ema, **parts)

"""V-JEPA: I-JEPA's idea on video, tubes hidden through all frames, two masks for each clip (Bardes et al. 2024)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn

from torchjepa.ema import EMA
from torchjepa.energy import EnergyFn, LpEnergy
from torchjepa.masking import vjepa_masks
from torchjepa.models.masked import MaskedJEPA
from torchjepa.types import Encoder, MaskSampler

_DEFAULT_MASKS = vjepa_masks()
_DEFAULT_ENERGY = LpEnergy(p=1.0)
_DEFAULT_EMA = EMA(0.998)


class VJEPA(MaskedJEPA):
    """V-JEPA (arXiv 2404.08471): `MaskedJEPA` with L1 and a mask token of the predictor for each mask.

    L = mean over masks i of mean over target tokens of
        |predictor_i(encoder(x, context_i), targets_i) - layer_norm(target_encoder(x))[targets_i]|.

    Args:
        encoder: the context encoder; as released a ViT with `patch_size=(2, 16, 16)`.
        predictor: with a mask token for each mask: `Predictor(num_mask_tokens=2, positions="thw", ...)`.
        mask: the masks of every clip, `vjepa_masks()` by default: eight short-range blocks, two long-range ones (the
            paper's, without the released sampler's defects; `vjepa_masks(legacy=True)` has them).
        energy: mean |z - h|^p / p with p = 1 (as released).
        ema: momentum 0.998 throughout by default. As released it rises linearly towards 1:
            `EMA(0.998, LinearMomentumSchedule(0.998, total_steps=...))`, stretched there to 1.25 times the run.
        mask_tokens: token i for mask i by default (as released).
        parts: further arguments of `MaskedJEPA`.

    Raises:
        ValueError: as `MaskedJEPA`.
    """

    def __init__(
        self,
        encoder: Encoder,
        predictor: nn.Module,
        *,
        mask: MaskSampler | Sequence[MaskSampler] = _DEFAULT_MASKS,
        energy: EnergyFn = _DEFAULT_ENERGY,
        ema: EMA | None = _DEFAULT_EMA,
        mask_tokens: Sequence[int] | None = None,
        **parts: Any,
    ) -> None:
        if mask_tokens is None:
            mask_tokens = range(len(mask)) if isinstance(mask, Sequence) else (0,)
        super().__init__(
            encoder, predictor, mask=mask, energy=energy, ema=ema, mask_tokens=mask_tokens, **parts
        )

"""V-JEPA 2: V-JEPA at scale, with rotary positions and constant schedules (Assran et al. 2025)."""

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
_DEFAULT_EMA = EMA(0.99925)


class VJEPA2(MaskedJEPA):
    """V-JEPA 2 (arXiv 2506.09985): `MaskedJEPA` with L1, a constant momentum and one mask token for all masks.

    L = mean over masks i of mean over target tokens of
        |predictor(encoder(x, context_i), targets_i) - layer_norm(target_encoder(x))[targets_i]|.

    What sets it apart from V-JEPA otherwise is in the networks, whose queries and keys rotary positions turn.

    Args:
        encoder: the context encoder; as released a ViT with `patch_size=(2, 16, 16)` and
            `positions=RotaryPositions(pairing="released")`; "correct" is what 2.1 has and new runs should.
        predictor: with rotary positions too.
        mask: the masks of every clip, those of V-JEPA by default (as released, but for its sampler's defects).
        energy: mean |z - h|^p / p with p = 1 (as released).
        ema: momentum 0.99925 throughout (as released).
        parts: further arguments of `MaskedJEPA`. The mask token is 0 for all masks by default: the released code
            has one for each number of frames that it trains on, and one such number takes the first for all masks.

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
        **parts: Any,
    ) -> None:
        super().__init__(encoder, predictor, mask=mask, energy=energy, ema=ema, **parts)

"""V-JEPA's wiring, mask by mask: encoder, target encoder and predictor run once for each, with a patch embedding each.

The networks are torchjepa's; what differs from `VJEPA` is how they are called. Restated from the released code's
description, whose encoder embeds every patch of the clip before it picks the visible ones, again for every mask; with
`target_once` the target encoder runs once for all masks, as it does there.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchjepa.models import VJEPA
from torchjepa.nn import ViT
from torchjepa.nn.patch import patchify
from torchjepa.nn.rope import RotaryTables
from torchjepa.types import Batch, Embedded, Loss


def pick(tokens: Tensor, ids: Tensor) -> Tensor:
    """Tokens by an index that is as large as what it picks."""
    return torch.gather(tokens, 1, ids.unsqueeze(-1).repeat(1, 1, tokens.shape[-1]))


def encode(vit: ViT, clips: Tensor, ids: Tensor) -> Tensor:
    """The visible tokens of clips of which every patch is embedded."""
    grid = vit.grid(clips.shape[2:])
    tokens, rotation = vit.patch_embed(patchify(clips, vit.patch_size)), None
    if isinstance(vit.positions, RotaryTables):
        rotation = vit.positions.rotation(grid, ids, tokens)
    else:
        tokens = tokens + vit.positions(grid, tokens)
    tokens = pick(tokens, ids)
    for block in vit.blocks:
        tokens = block(tokens, rotation=rotation)
    return vit.norm(tokens)


class MaskByMask(VJEPA):
    """`VJEPA` that does everything for one mask after the other."""

    def __init__(self, *args: Any, target_once: bool, **parts: Any) -> None:
        super().__init__(*args, **parts)
        self.target_once = target_once

    def embed(self, batch: Batch, step: int) -> Embedded:
        clips = batch.views[0]
        grid = self.encoder.grid(clips.shape[2:])
        wanted, losses = None, []
        for index in range(len(self.masks)):
            if wanted is None or not self.target_once:
                with torch.no_grad():
                    full = self.target_encoder(clips)
                    wanted = F.layer_norm(full, full.shape[-1:])
            masks = self.draw_masks(grid, batch, step, index=index)
            context = encode(self.encoder, clips, masks.context)
            predicted = self.predictor(context, masks.context, masks.targets, grid, index)
            losses.append((predicted[:, 0] - pick(wanted, masks.targets[:, 0])).abs().mean())
        return Embedded((), Loss(torch.stack(losses).mean()))

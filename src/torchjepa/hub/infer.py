"""Constructor arguments from the shapes of the tensors, for the networks that checkpoints hold."""

from __future__ import annotations

import re
from typing import Any

from torchjepa.hub.family import Shapes


def vit(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `ViT` but heads and positions: the patch embedding is a convolution `[d, c, ...]`."""
    (embed_dim, in_channels, *patch_size) = shapes["patch_embed.weight"][0]
    return {
        "patch_size": patch_size,
        "embed_dim": embed_dim,
        "in_channels": in_channels,
        **_blocks(shapes, embed_dim),
    }


def predictor(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `Predictor` but heads and positions."""
    embed_dim, encoder_dim = shapes["embed.weight"][0]
    tokens = shapes["mask_token"]
    # One tensor for each token, or one for all, whose first axis counts them.
    count = len(tokens) if len(tokens) > 1 else tokens[0][0]
    more = {"num_mask_tokens": count} if count > 1 else {}
    return {"encoder_dim": encoder_dim, "embed_dim": embed_dim, **_blocks(shapes, embed_dim), **more}


def _blocks(shapes: Shapes, embed_dim: int) -> dict[str, Any]:
    # Counted, not the largest index plus one: a hostile name must not ask for a billion blocks.
    depth = len({hit[1] for name in shapes if (hit := re.match(r"blocks\.(\d+)\.", name))})
    hidden = shapes["blocks.0.mlp.fc1.weight"][0][0]
    return {"depth": depth, "mlp_ratio": hidden / embed_dim}

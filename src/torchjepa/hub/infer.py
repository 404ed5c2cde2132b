"""Constructor arguments from the shapes of the tensors, for the networks that checkpoints hold."""

from __future__ import annotations

import re
from typing import Any

from torchjepa.hub.family import Shapes


def vit(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `ViT` but heads and positions: the patch embedding is a convolution `[d, c, ...]`."""
    embed_dim, in_channels, *patch_size = shapes["patch_embed.weight"][0]
    return {"patch_size": patch_size, "in_channels": in_channels, **_blocks(shapes, embed_dim)}


def predictor(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `Predictor` but heads and positions."""
    embed_dim, encoder_dim = shapes["embed.weight"][0]
    # One tensor for each token, or one for all: the first axis counts either way.
    count = sum(shape[0] for shape in shapes["mask_token"])
    return {"encoder_dim": encoder_dim, "num_mask_tokens": count, **_blocks(shapes, embed_dim)}


def action_predictor(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `ActionPredictor` but heads and positions."""
    embed_dim, encoder_dim = shapes["embed.weight"][0]
    extrinsics = shapes.get("extrinsics_embed.weight")
    return {
        "encoder_dim": encoder_dim,
        "action_dim": shapes["action_embed.weight"][0][1],
        "state_dim": shapes["state_embed.weight"][0][1],
        "extrinsics_dim": extrinsics[0][1] if extrinsics else None,
        **_blocks(shapes, embed_dim),
    }


def attentive_classifier(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `AttentiveClassifier` but heads and epsilon."""
    num_classes, embed_dim = shapes["linear.weight"][0]
    return {
        "embed_dim": embed_dim,
        "num_classes": num_classes,
        "depth": 1 + _depth(shapes, "pooler.blocks"),
        "mlp_ratio": shapes["pooler.cross.mlp.fc1.weight"][0][0] / embed_dim,
    }


def linear(shapes: Shapes) -> dict[str, Any]:
    """Arguments of `torch.nn.Linear`."""
    out_features, in_features = shapes["weight"][0]
    return {"in_features": in_features, "out_features": out_features}


def _blocks(shapes: Shapes, embed_dim: int) -> dict[str, Any]:
    mlp_ratio = shapes["blocks.0.mlp.fc1.weight"][0][0] / embed_dim
    return {"embed_dim": embed_dim, "depth": _depth(shapes, "blocks"), "mlp_ratio": mlp_ratio}


def _depth(shapes: Shapes, blocks: str) -> int:
    # Counted, not the largest index plus one: a hostile name must not ask for a billion blocks.
    return len({hit[1] for name in shapes if (hit := re.match(rf"{re.escape(blocks)}\.(\d+)\.", name))})

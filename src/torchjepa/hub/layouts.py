"""Rules that several families share: what the released code calls the pieces of its transformers."""

from __future__ import annotations

from torch import Tensor, nn

from torchjepa.hub.keymap import JOIN, KeyMap, Reshape, Rule, Shape, inside, renamed, same
from torchjepa.nn import RotaryPositions


def convolution(network: nn.Module, weight: Tensor) -> Shape:
    """The shape of our linear patch embedding as a convolution's weight, `[d, c, ...]`."""
    config = network.config
    return (len(weight), config["in_channels"], *config["patch_size"])  # type: ignore[index]


PATCHES = Reshape(convolution)

BLOCK: KeyMap = same("norm1.{p}", "attn.qkv.{p}", "attn.proj.{p}", "norm2.{p}", "mlp.fc1.{p}", "mlp.fc2.{p}")

VIT: KeyMap = (
    Rule("patch_embed.weight", ("patch_embed.proj.weight",), PATCHES),
    Rule("patch_embed.bias", ("patch_embed.proj.bias",)),
    *inside("blocks.{i}.", "blocks.{i}.", BLOCK),
    *same("norm.{p}"),
)

# All of a predictor but its mask tokens, which every family keeps in its own way.
PREDICTOR: KeyMap = (
    *renamed(
        {
            "embed.{p}": "predictor_embed.{p}",
            "norm.{p}": "predictor_norm.{p}",
            "proj.{p}": "predictor_proj.{p}",
        }
    ),
    *inside("blocks.{i}.", "predictor_blocks.{i}.", BLOCK),
)

MASK_TOKEN_LIST: KeyMap = (Rule("mask_token", ("mask_tokens.{j}",), JOIN),)

# Rotary positions as the released V-JEPA 2 weights were trained with.
RELEASED_ROTARY = {"positions": RotaryPositions(pairing="released").config}

"""V-JEPA 2-AC as released: the frozen ViT-g of V-JEPA 2 and the block-causal predictor conditioned on actions."""

from __future__ import annotations

from dataclasses import replace

from torchjepa.hub import infer, layouts
from torchjepa.hub.families.vjepa2 import FAMILY as VJEPA2
from torchjepa.hub.family import Family, Network
from torchjepa.hub.keymap import renamed

FAMILY = Family(
    name="vjepa2_ac",
    title="V-JEPA 2-AC",
    tells_encoders=False,  # the encoder is frozen: online and target are one
    image_size=256,
    num_frames=8,
    frame_rate=4.0,
    networks={
        "encoder": replace(VJEPA2.networks["encoder"], prefix="module."),
        "predictor": Network(
            architecture="ActionPredictor",
            rules=(
                *layouts.PREDICTOR,
                *renamed(
                    {
                        "action_embed.{p}": "action_encoder.{p}",
                        "state_embed.{p}": "state_encoder.{p}",
                        "extrinsics_embed.{p}": "extrinsics_encoder.{p}",
                    }
                ),
            ),
            infer=infer.action_predictor,
            signature={"action_encoder.weight": 2, "state_encoder.weight": 2},
            heads={(1024, 24): 16},
            prefix="module.",
            fixed=layouts.RELEASED_ROTARY,
        ),
    },
)

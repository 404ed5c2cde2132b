"""V-JEPA 2 as released: ViT-L, H, g and g at 384, tubelets of 2 x 16 x 16, rotary positions in their own pairing."""

from __future__ import annotations

from torchjepa.hub import infer, layouts
from torchjepa.hub.family import Family, Network, PositionTable

LAYOUTS = ("thw", "tthw")
ENCODER_HEADS = {(1024, 24): 16, (1280, 32): 16, (1408, 40): 22, (1664, 48): 26}

FAMILY = Family(
    name="vjepa2",
    title="V-JEPA 2",
    image_size=256,
    num_frames=64,
    frame_rate=4.0,
    networks={
        "encoder": Network(
            architecture="ViT",
            rules=layouts.VIT,
            infer=infer.vit,
            signature={"patch_embed.proj.weight": 5},
            heads=ENCODER_HEADS,
            prefix="module.backbone.",
            fixed=layouts.RELEASED_ROTARY,
            table=PositionTable("pos_embed", LAYOUTS, used=False),
        ),
        "predictor": Network(
            architecture="Predictor",
            rules=(*layouts.PREDICTOR, *layouts.MASK_TOKEN_LIST),
            infer=infer.predictor,
            signature={"mask_tokens.0": 3},
            heads={(384, 12): 12},
            prefix="module.backbone.",
            fixed=layouts.RELEASED_ROTARY,
            table=PositionTable("predictor_pos_embed", LAYOUTS, used=False),
        ),
    },
)

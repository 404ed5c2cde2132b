"""I-JEPA as released: ViT-H/14, ViT-H/16 at 448 and ViT-g/16; `encoder`, `target_encoder`, `predictor`."""

from __future__ import annotations

from torchjepa.hub import infer, layouts
from torchjepa.hub.family import Family, Network, PositionTable
from torchjepa.hub.keymap import same

# Width and depth; the released ones are the last two.
HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16, (1408, 40): 16}

FAMILY = Family(
    name="ijepa",
    title="I-JEPA",
    networks={
        "encoder": Network(
            architecture="ViT",
            rules=layouts.VIT,
            infer=infer.vit,
            signature={"patch_embed.proj.weight": 4},
            heads=HEADS,
            prefix="module.",
            table=PositionTable("pos_embed", ("wh",)),
        ),
        "predictor": Network(
            architecture="Predictor",
            rules=(*layouts.PREDICTOR, *same("mask_token")),
            infer=infer.predictor,
            signature={"mask_token": 3},
            # The released code gives the predictor the encoder's number of heads.
            heads_by=("encoder_dim",),
            heads={(width,): heads for (width, _), heads in HEADS.items()},
            prefix="module.",
            table=PositionTable("predictor_pos_embed", ("wh",)),
        ),
    },
)

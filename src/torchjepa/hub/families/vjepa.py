"""V-JEPA as released: ViT-L/16, H/16 and H/16 at 384, tubelets of 2 x 16 x 16, sin-cos positions in three axes."""

from __future__ import annotations

from collections.abc import Mapping

from torchjepa.hub import infer, layouts
from torchjepa.hub.family import Family, Network, PositionTable
from torchjepa.hub.keymap import Shape

HEADS = {(192, 12): 3, (384, 12): 6, (768, 12): 12, (1024, 24): 16, (1280, 32): 16}
# Equal shares for the three axes (`uniform_power`, the released ones), or half of the channels for time.
LAYOUTS = ("thw", "tthw")
_RELEASED_WIDTHS = (1024, 1280)
_RELEASED_TOKENS = (8 * 14 * 14, 8 * 24 * 24)


def _is_not_vjepa2(kinds: Mapping[str, Mapping[str, Shape]]) -> bool:
    """Whether a file with position tables means them: released V-JEPA 2 files hold stale ones.

    Those have 10 mask tokens instead of 2, or the giant's width, or tables of 256-pixel clips.
    """
    if sum(name.startswith("mask_tokens.") for name in kinds.get("predictor", {})) >= 10:
        return False
    _, num_tokens, width = kinds.get("encoder", {}).get("pos_embed", (1, 0, 0))
    return width < 1408 and (width not in _RELEASED_WIDTHS or num_tokens in _RELEASED_TOKENS)


FAMILY = Family(
    name="vjepa",
    title="V-JEPA",
    accepts=_is_not_vjepa2,
    num_frames=16,
    frame_rate=7.5,  # every fourth frame of videos that mostly have 30 a second
    networks={
        "encoder": Network(
            architecture="ViT",
            rules=layouts.VIT,
            infer=infer.vit,
            signature={"patch_embed.proj.weight": 5, "pos_embed": 3},
            heads=HEADS,
            prefix="module.backbone.",
            table=PositionTable("pos_embed", LAYOUTS),
        ),
        "predictor": Network(
            architecture="Predictor",
            rules=(*layouts.PREDICTOR, *layouts.MASK_TOKEN_LIST),
            infer=infer.predictor,
            signature={"mask_tokens.0": 3, "predictor_pos_embed": 3},
            # The released code gives the predictor the encoder's number of heads.
            heads_by=("encoder_dim",),
            heads={(width,): heads for (width, _), heads in HEADS.items()},
            prefix="module.backbone.",
            table=PositionTable("predictor_pos_embed", LAYOUTS),
        ),
    },
)

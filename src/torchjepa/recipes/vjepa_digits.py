"""V-JEPA with rotary positions on the embedded moving digits: no download.

    jepa train vjepa-digits

The context is a quarter or a half of a clip, all of its frames' places, and the rest of the clip is to be predicted:
whoever knows which way a digit moves, and how fast, knows where it will be and where it was. The masks of the paper
teach nothing here: a digit is two patches wide, and a tube hides it from the first frame to the last (docs/log.md).

Expected with seed 0, in 340 seconds of one core, judging included; accuracy in % of the linear (and the attentive)
probe, beside them the same encoder shown one frame throughout, the untrained encoder and raw pixels:

    direction  73 (86)   frame 13 (12)   untrained 61 (76)   pixels 74
    speed      95 (95)   frame 35 (33)   untrained 75 (95)   pixels 43
    digit      27 (32)   frame 29 (47)   untrained 31 (48)   pixels 14

With seed 1 the linear probe gives 69, 93 and 27. It learns motion and forgets digits: to say where
something will be, it need not know what it is.
"""

from typing import Any

from torchjepa.energy import SmoothL1Energy
from torchjepa.masking import TubeMasking
from torchjepa.models import PositionStandardize
from torchjepa.recipes.video import VJEPARecipe

_SPAN: dict[str, Any] = {
    "num_blocks": 1,
    "spatial_scale": (1.0, 1.0),
    "aspect": (1.0, 1.0),
    "inverted": True,
}

recipe = VJEPARecipe(
    image_size=32,
    # Black stays 0.
    mean=(0.0,),
    std=(0.25,),
    frame_rate=8.0,
    # 4 x 4 x 4 tokens, each long enough to see a digit move by a pixel or more.
    tubelet_size=4,
    patch_size=8,
    # A digit looks the same to them wherever and whenever it is.
    positions="rope",
    embed_dim=64,
    depth=3,
    num_heads=2,
    # So small that what moves where has to be told by the encoder's tokens.
    predictor_dim=32,
    predictor_depth=1,
    predictor_heads=1,
    init_gain=0.5,
    masks=(
        TubeMasking(temporal_scale=(0.5, 0.5), **_SPAN),
        TubeMasking(temporal_scale=(0.25, 0.25), **_SPAN),
    ),
    # L1 asks for the median, which is that of the ground wherever a digit is not certain.
    energy=SmoothL1Energy(),
    # What all videos share at a place would be most of a target: canvases are mostly empty.
    target_norm=PositionStandardize(),
    # Crops would cut digits in two; mirror images turn their directions.
    crop_scale=(1.0, 1.0),
    flip=0.0,
    momentum=0.99,
    # A digit covers a few of the 64 tokens: what the strongest of them say is lost in the mean.
    pool="mean_max",
    steps=2400,
    batch_size=32,
    lr=1.5e-3,
    weight_decay=0.05,
    precision="auto",
    probe_every=600,
    judge_samples=4000,
)

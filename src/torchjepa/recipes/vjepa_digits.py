"""V-JEPA with rotary positions on the embedded moving digits: no download.

    jepa train vjepa-digits

Half of a clip is seen, all of its places, and the other half is to be predicted: whoever knows which way a digit moves,
and how fast, knows where it will be and where it was. VICReg between what two such draws see keeps what lasts: which
digit it is. The masks of the paper teach nothing here: a digit is two patches wide, and a tube hides it from the first
frame to the last (docs/log.md).

Expected with seed 0, in 4 minutes 25 seconds on 2 cores, judging included; accuracy in % of the linear (and the
attentive) probe, beside them the same encoder shown one frame throughout, the untrained encoder and raw pixels:

    direction  81 (86)   frame 13 (13)   untrained 52 (70)   pixels 61
    speed      97 (98)   frame 38 (38)   untrained 73 (91)   pixels 41
    digit      32 (36)   frame 34 (44)   untrained 27 (35)   pixels 13

Without VICReg it learns motion alone and forgets digits (24 %).
"""

from torchjepa.collapse import VICReg
from torchjepa.energy import SmoothL1Energy
from torchjepa.masking import TubeMasking
from torchjepa.models import PositionStandardize
from torchjepa.recipes.video import VJEPARecipe

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
    # Half of the clip is seen and the other half predicted, twice.
    masks=(
        TubeMasking(
            num_blocks=1,
            spatial_scale=(1.0, 1.0),
            temporal_scale=(0.5, 0.5),
            aspect=(1.0, 1.0),
            inverted=True,
        ),
    ),
    num_mask_draws=2,
    # Between what is seen in the two draws. 0.2 of the energy: at 1 direction is lost again, at 0 digits are.
    regularizer=VICReg(lambda_inv=1.0, mu_var=1.0, nu_cov=0.04),
    regularizer_weight=0.2,
    regularizer_pool="mean_max",
    projector_dim=128,
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
    steps=1800,
    batch_size=64,
    lr=2e-3,
    weight_decay=0.05,
    precision="auto",
    probe_every=600,
    judge_samples=2000,
)

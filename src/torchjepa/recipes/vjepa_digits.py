"""V-JEPA with rotary positions on the embedded moving digits: no download.

    jepa train vjepa-digits
"""

from torchjepa.energy import SmoothL1Energy
from torchjepa.models import PositionStandardize
from torchjepa.recipes.video import VJEPARecipe

recipe = VJEPARecipe(
    image_size=32,
    # Black stays 0.
    mean=(0.0,),
    std=(0.25,),
    frame_rate=8.0,
    patch_size=8,
    # Rotary: what moves looks the same everywhere, and a mean over all places still tells which way.
    positions="rope",
    embed_dim=64,
    depth=3,
    num_heads=2,
    predictor_dim=32,
    predictor_depth=1,
    predictor_heads=1,
    init_gain=0.5,
    # Layer norm alone leaves targets that say where a token is, and little else: canvases are mostly empty.
    target_norm=PositionStandardize(),
    # L1 asks for the median, which is black wherever a digit is not certain.
    energy=SmoothL1Energy(),
    crop_scale=(1.0, 1.0),
    flip=0.0,
    momentum=0.99,
    steps=2500,
    batch_size=32,
    lr=1e-3,
    weight_decay=0.05,
    precision="auto",
    probe_every=500,
    judge_samples=4000,
)

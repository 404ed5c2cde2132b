"""VICReg on the embedded handwritten digits: no download, a judged encoder in under four minutes on 2 cores.

jepa train

Expected with seed 0: kNN 81 %, linear probe 87 % (untrained 46 and 51, raw pixels 45 and 11), in 3 minutes 24 seconds
on a CPU with bfloat16 instructions.
"""

from torchjepa.collapse import VICReg
from torchjepa.data import Photometric
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe

_CONTRAST = Photometric(jitter_probability=1.0)

recipe = JointEmbeddingRecipe(
    image_size=32,
    # A digit is a quarter of the canvas at most: the last map stays at 8 x 8 and its maximum is pooled too.
    widths=(32, 64, 128),
    depths=(1, 1, 0),
    strides=(2, 2, 1),
    pool="mean_max",
    projector_dim=256,
    regularizer=VICReg(),
    crop_scale=(0.5, 1.0),
    flip=0.0,
    colour_a=_CONTRAST,
    colour_b=_CONTRAST,
    steps=1700,
    batch_size=128,
    lr=3e-3,
    weight_decay=0.01,
    warmup=0.02,
    precision="auto",
    log_every=25,
    probe_every=200,
)

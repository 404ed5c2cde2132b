"""VICReg on the embedded handwritten digits: no download, a judged encoder in under four minutes on 2 cores.

jepa train
"""

from torchjepa.collapse import VICReg
from torchjepa.data import Photometric
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe

recipe = JointEmbeddingRecipe(
    image_size=32,
    projector_dim=256,
    regularizer=VICReg(),
    crop_scale=(0.4, 1.0),
    flip=0.0,
    colour_a=Photometric(jitter_probability=0.0),
    colour_b=Photometric(jitter_probability=0.0),
    steps=400,
    batch_size=256,
    lr=2e-3,
    weight_decay=0.01,
    probe_every=100,
)

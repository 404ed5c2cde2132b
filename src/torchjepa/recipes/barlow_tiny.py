"""Barlow Twins with a small convolutional encoder on a folder of images.

jepa train barlow-tiny --data path/to/images
"""

from torchjepa.collapse import BarlowTwins
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe

recipe = JointEmbeddingRecipe(
    image_size=64,
    projector_dim=1024,
    regularizer=BarlowTwins(),
    steps=3000,
    lr=2e-3,
    weight_decay=0.05,
    warmup=0.05,
    probe_every=300,
)

"""Barlow Twins with a small convolutional encoder on a folder of images.

jepa train barlow-tiny --data path/to/images
"""

from torchjepa.collapse import BarlowTwins
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe

recipe = JointEmbeddingRecipe(regularizer=BarlowTwins())

"""VICReg with a small convolutional encoder on a folder of images.

jepa train vicreg-tiny --data path/to/images
"""

from torchjepa.collapse import VICReg
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe

recipe = JointEmbeddingRecipe(regularizer=VICReg())

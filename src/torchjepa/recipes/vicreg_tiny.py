"""VICReg with a small convolutional encoder on a folder of images.

jepa train vicreg-tiny --data path/to/images

On CIFAR-10 at --image-size 32, an hour on one core: kNN 66 %, linear probe 69 % (README).
"""

from torchjepa.collapse import VICReg
from torchjepa.recipes.joint_embedding import JointEmbeddingRecipe

recipe = JointEmbeddingRecipe(
    image_size=64,
    projector_dim=1024,
    regularizer=VICReg(),
    steps=3000,
    lr=2e-3,
    weight_decay=0.05,
    warmup=0.05,
    probe_every=300,
)

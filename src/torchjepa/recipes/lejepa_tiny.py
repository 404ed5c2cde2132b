"""LeJEPA with a small convolutional encoder on a folder of images: two global and four local views.

jepa train lejepa-tiny --data path/to/images
"""

from torchjepa.recipes.lejepa import LeJEPARecipe

recipe = LeJEPARecipe(
    image_size=64,
    projector_dim=1024,
    num_local=4,
    steps=3000,
    lr=2e-3,
    final_lr=2e-6,
    weight_decay=0.05,
    warmup=0.05,
    probe_every=300,
)

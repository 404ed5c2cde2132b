"""I-JEPA with a ViT-Ti/16 on a folder of images.

jepa train ijepa-tiny --data path/to/images
"""

from torchjepa.recipes.masked import IJEPARecipe

# Released I-JEPA initialises at 0.02 whatever the width; networks this narrow then start with next to no gradient in
# the encoder (docs/log.md), so their weights follow the width.
recipe = IJEPARecipe(embed_dim=192, depth=12, num_heads=3, init_gain=0.5)

"""I-JEPA with a ViT-Tiny/16 on a folder of images.

jepa train ijepa-tiny --data path/to/images
"""

from torchjepa.recipes.masked import IJEPARecipe

recipe = IJEPARecipe(embed_dim=192, depth=12, num_heads=3)

"""I-JEPA with a ViT-Small/16 on a folder of images.

jepa train ijepa-small --data path/to/images
"""

from torchjepa.recipes.masked import IJEPARecipe

recipe = IJEPARecipe(embed_dim=384, depth=12, num_heads=6)

"""I-JEPA with a ViT-Base/16 on a folder of images.

jepa train ijepa-base --data path/to/images
"""

from torchjepa.recipes.masked import IJEPARecipe

recipe = IJEPARecipe(embed_dim=768, depth=12, num_heads=12)

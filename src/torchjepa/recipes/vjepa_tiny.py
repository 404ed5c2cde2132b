"""V-JEPA with a ViT-Ti/16 on a folder of videos.

    jepa train vjepa-tiny --data path/to/videos

Clips of 16 frames, 7.5 a second, 224 x 224 pixels. No long run of it has been made for this library.
"""

from torchjepa.recipes.video import VJEPARecipe

# Narrow networks start with next to no gradient in the encoder at the released 0.02 (docs/log.md).
recipe = VJEPARecipe(
    embed_dim=192,
    depth=12,
    num_heads=3,
    init_gain=0.5,
    batch_size=64,
    steps=10_000,
    lr=6.25e-4,
    clip_grad=10.0,
)

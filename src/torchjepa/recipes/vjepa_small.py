"""V-JEPA with a ViT-S/16 on a folder of videos.

    jepa train vjepa-small --data path/to/videos --num-workers 8 --precision auto

Clips of 16 frames, 7.5 a second, 224 x 224 pixels. No long run of it has been made for this library.
"""

from torchjepa.recipes.video import VJEPARecipe

recipe = VJEPARecipe(
    embed_dim=384,
    depth=12,
    num_heads=6,
    predictor_dim=192,
    predictor_heads=6,
    batch_size=256,
    steps=50_000,
    start_lr=2e-4,
    lr=6.25e-4,
    final_weight_decay=0.4,
    clip_grad=10.0,
)

"""V-JEPA 2 with a ViT-S/16 on a folder of videos.

    jepa train vjepa2-small --data path/to/videos --num-workers 8 --precision auto

Clips of 16 frames, 4 a second, 256 x 256 pixels; rotary positions; learning rate, weight decay and momentum stay after
the warm-up, so that a run can be stopped or prolonged anywhere. No long run of it has been made for this library.
"""

from torchjepa.recipes.video import VJEPA2Recipe

recipe = VJEPA2Recipe(
    image_size=256,
    embed_dim=384,
    depth=12,
    num_heads=6,
    predictor_dim=192,
    predictor_heads=6,
    batch_size=256,
    steps=50_000,
    start_lr=1e-4,
    lr=5.25e-4,
    final_lr=5.25e-4,
)

"""V-JEPA 2 as released, ViT-L/16 at 256 pixels: for a cluster.

    jepa train vjepa2-large --data path/to/videos --num-workers 8 --precision bf16-mixed --recompute-activations

The numbers are those of the released configuration of the first stage: clips of 16 frames, 4 a second; 240,000 steps
of 3,072 clips; constant learning rate, weight decay and momentum after a warm-up of 12,000 steps. (Steps and warm-up
are the giant's: the large one's released file would end within its warm-up.) Where ours departs: masks without the
released sampler's bias against late frames (`TubeMasking(legacy=True)` has it), and rotary positions that turn pairs by
one angle, as in V-JEPA 2.1 (`--positions rope-released` for those of V-JEPA 2). Not trained here; the released weights
load with `jepa embed --model vjepa2-vitl`.
"""

from torchjepa.recipes.video import VJEPA2Recipe

recipe = VJEPA2Recipe(
    image_size=256,
    embed_dim=1024,
    depth=24,
    num_heads=16,
    predictor_dim=384,
    predictor_depth=12,
    predictor_heads=12,
    batch_size=3072,
    steps=240_000,
    start_lr=1e-4,
    lr=5.25e-4,
    final_lr=5.25e-4,
    warmup=0.05,
)

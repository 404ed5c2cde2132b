"""V-JEPA as released, ViT-L/16 at 224 pixels: for a cluster.

    jepa train vjepa-large --data path/to/videos --num-workers 8 --precision bf16-mixed --recompute-activations

All numbers are those of the released configuration: clips of 16 frames, every fourth of a usual video; 90,000 steps
of 3,072 clips, on 128 GPUs; schedules that are a quarter longer than the run, which so ends at a momentum of 0.9996.
Where ours departs: masks without the released sampler's bias against late frames (`TubeMasking(legacy=True)` has it);
the gradients of encoder and predictor are clipped together, in the warm-up too; output projections start smaller,
by depth. Not trained here; the released weights load with `jepa embed --model vjepa-vitl16`.
"""

from torchjepa.recipes.video import VJEPARecipe

recipe = VJEPARecipe(
    embed_dim=1024,
    depth=24,
    num_heads=16,
    predictor_dim=384,
    predictor_depth=12,
    predictor_heads=16,
    batch_size=3072,
    steps=90_000,
    start_lr=2e-4,
    lr=6.25e-4,
    warmup=40 / 300,
    final_weight_decay=0.4,
    schedule_stretch=1.25,
    clip_grad=10.0,
)

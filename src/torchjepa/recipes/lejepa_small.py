"""LeJEPA with a ViT-S/16 at 224 x 224: two global and six local views (Balestriero and LeCun 2025).

jepa train lejepa-small --data path/to/images --epochs 100 --num-workers 8 --precision bf16-mixed
"""

from torchjepa.recipes.lejepa import LeJEPARecipe

recipe = LeJEPARecipe(
    encoder="vit",
    steps=100_000,
    batch_size=512,
    lr=5e-4,
    final_lr=5e-7,
    weight_decay=0.05,
    checkpoint_every=2000,
    probe_every=5000,
)

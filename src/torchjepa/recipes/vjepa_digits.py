"""V-JEPA on the embedded moving digits: no download.

    jepa train vjepa-digits
"""

from torchjepa.recipes.video import VJEPARecipe

recipe = VJEPARecipe(
    image_size=32,
    mean=(0.0,),
    std=(0.25,),
    frame_rate=8.0,
    patch_size=8,
    embed_dim=64,
    depth=3,
    num_heads=2,
    predictor_dim=32,
    predictor_depth=1,
    predictor_heads=1,
    init_gain=0.5,
    crop_scale=(1.0, 1.0),
    momentum=0.98,
    steps=600,
    batch_size=64,
    lr=2e-3,
    probe_every=150,
)

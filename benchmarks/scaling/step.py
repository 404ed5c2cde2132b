"""The training step over the batch, the tokens and the parameters: I-JEPA, predictor of half the encoder's width."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

from benchmarks.scaling.curve import Curve
from torchjepa.engine import follow_update, time_updates
from torchjepa.nn.vit import PRESETS
from torchjepa.recipes import IJEPARecipe

_ENOUGH = 2.0  # seconds; two updates are done in any case, the first of which does not count
_LINEAR = {"seconds": 1.0, "bytes": 1.0, "followed bytes": 1.0}
SIZES = {
    preset["embed_dim"]: name
    for name, preset in PRESETS.items()
    if name in ("tiny", "small", "base", "large")
}


def curves() -> Iterator[Curve]:
    """By batch at 32 x 32, by tokens of patches of 16, by width from Ti to L at 224 x 224."""
    batches, tokens = (8, 16, 32, 64, 128, 256, 512), (64, 196, 400, 784, 1600, 3136)
    yield Curve("step over batch", "samples", batches, _of_batch, _LINEAR, fresh=True)
    yield Curve("step over tokens", "tokens", tokens, _of_tokens, _LINEAR, against="FLOPs", fresh=True)
    recomputed = partial(_of_tokens, recompute=True)
    yield Curve(
        "recomputing step over tokens",
        "tokens",
        tokens[:-1],
        recomputed,
        _LINEAR,
        against="FLOPs",
        fresh=True,
    )
    yield Curve(
        "step over parameters", "width", tuple(SIZES), _of_width, _LINEAR, against="FLOPs", fresh=True
    )


def recipe_of(
    size: str, image_size: int, patch_size: int, batch_size: int, recompute: bool = False
) -> IJEPARecipe:
    """I-JEPA of a published size."""
    preset = PRESETS[size]
    return IJEPARecipe(
        image_size=image_size,
        patch_size=patch_size,
        embed_dim=preset["embed_dim"],
        depth=preset["depth"],
        num_heads=preset["num_heads"],
        predictor_dim=preset["embed_dim"] // 2,
        predictor_heads=preset["num_heads"],
        init_gain=0.5,
        batch_size=batch_size,
        recompute_activations=recompute,
        accelerator="cpu",
    )


def _of_batch(samples: int) -> Mapping[str, float]:
    return _step(recipe_of("tiny", 32, 4, samples))


def _of_tokens(tokens: int, recompute: bool = False) -> Mapping[str, float]:
    return _step(recipe_of("tiny", 16 * math.isqrt(tokens), 16, 2, recompute))


def _of_width(width: int) -> Mapping[str, float]:
    return _step(recipe_of(SIZES[width], 224, 16, 2))


def _step(recipe: IJEPARecipe) -> Mapping[str, float]:
    shapes, settings = [(3, recipe.image_size, recipe.image_size)], recipe.train_settings(100)
    footprint = follow_update(lambda: recipe.seeded_learner(3, 100), shapes, settings)
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    speed = time_updates(lambda: recipe.seeded_learner(3, 100), shapes, settings, seconds=_ENOUGH)
    return {
        "parameters": sum(footprint.parameters.values()),
        "FLOPs": footprint.flops_per_sample * recipe.batch_size,
        "seconds": recipe.batch_size / speed.samples_per_second,
        "bytes": speed.bytes,
        "followed bytes": footprint.bytes,
    }

"""What every recipe in the folder promises, by name."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from torchjepa.data import SampleKeys
from torchjepa.nn.pooling import pool_by_name
from torchjepa.recipes.base import Recipe
from torchjepa.recipes.find import find_recipe, recipe_names, recipe_text
from torchjepa.recipes.serial import from_json, to_json
from torchjepa.types import Batch, Learner

NAMES = recipe_names()


def small(recipe: Recipe) -> Recipe:
    """The same recipe at a size that a test can afford: few blocks, 4 x 4 patches."""
    changes: Mapping[str, Any] = {
        field: value
        for field, value in {
            "depth": 1,
            "predictor_depth": 1,
            "embed_dim": 24,
            "predictor_dim": 12,
            "num_heads": 2,
            "predictor_heads": 2,
            "widths": (4, 8),
            "depths": (1, 1),
            "strides": (2, 2),
            "projector_dim": 16,
            "num_frames": 8,
        }.items()
        if getattr(recipe, field, None) is not None
    }
    return replace(recipe, image_size=4 * getattr(recipe, "patch_size", 8), **changes)


def samples(recipe: Recipe, channels: int) -> list[Any]:
    """What the recipe's transform crops: images, or clips of videos."""
    images = [np.full((20, 30, channels), 25 * i, np.uint8) for i in range(8)]
    frames = getattr(recipe, "num_frames", None)
    return images if frames is None else [[np.stack([image] * frames)] for image in images]


def test_the_recipes_of_the_release_are_there() -> None:
    assert NAMES[0] == "digits"
    expected = {
        "digits",
        "ijepa-tiny",
        "ijepa-small",
        "ijepa-base",
        "vicreg-tiny",
        "barlow-tiny",
        "lejepa-tiny",
        "vjepa-digits",
        "vjepa-tiny",
        "vjepa-small",
        "vjepa-large",
        "vjepa2-small",
        "vjepa2-large",
    }
    assert expected <= set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_survives_json(name: str) -> None:
    recipe = find_recipe(name)
    text = json.dumps(to_json(recipe), allow_nan=False)
    # Not by ==: parts that are modules are told apart by identity.
    assert to_json(from_json(recipe, json.loads(text))) == to_json(recipe)


@pytest.mark.parametrize("name", NAMES)
def test_its_text_holds_the_command(name: str) -> None:
    assert "jepa train" in recipe_text(name)


@pytest.mark.parametrize("name", NAMES)
def test_its_schedules_and_settings_can_be_built(name: str) -> None:
    recipe = find_recipe(name)
    settings = recipe.train_settings(recipe.steps)
    assert max(settings.learning_rate(step) for step in range(0, recipe.steps, 7)) <= recipe.lr
    if getattr(recipe, "schedule_stretch", 1.0) == 1.0:
        assert settings.learning_rate(recipe.steps - 1) == pytest.approx(recipe.final_lr)
    assert settings.global_batch_size == recipe.batch_size


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", NAMES)
def test_it_builds_a_learner_that_learns_from_its_own_views(name: str, channels: int) -> None:
    recipe = small(find_recipe(name))
    preprocessing = recipe.preprocessing(channels)
    learner = recipe.seeded_learner(channels, total_steps=10)
    assert isinstance(learner, nn.Module)
    assert isinstance(learner, Learner)
    keys = SampleKeys(recipe.seed, np.zeros(8, np.int64), np.arange(8))
    transform = recipe.build_transform(preprocessing)
    views = transform.finish(transform.crop(samples(recipe, channels), keys), keys)
    ids = torch.arange(8)
    loss = learner.loss(Batch(views, ids, torch.full((8,), -1)), step=0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in learner.parameters())
    learner.after_step(0)
    inputs = torch.rand(8, channels, *preprocessing.input_shape)
    tokens = learner.encode(inputs)
    assert tokens.ndim == 3
    assert pool_by_name(recipe.pool_name)(tokens).shape[0] == 8
    encoder = learner.deployable_encoder
    assert encoder.grid(preprocessing.input_shape).num_tokens == tokens.shape[1]  # type: ignore[operator]

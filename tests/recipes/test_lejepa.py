"""The LeJEPA recipes: sizes that fit each other, every option at its place, flags for all numbers."""

import dataclasses
import json

import pytest
import torch

from torchjepa import collapse
from torchjepa.cli.train import parse
from torchjepa.models import LeJEPA
from torchjepa.nn import ConvEncoder, MeanMaxPool, ViT
from torchjepa.recipes import LeJEPARecipe
from torchjepa.recipes.serial import from_json, to_json

VIT = LeJEPARecipe(encoder="vit", image_size=32, patch_size=4, embed_dim=16, depth=1, num_heads=2)


def test_the_published_numbers_are_the_defaults():
    recipe = LeJEPARecipe()
    assert (recipe.num_global, recipe.num_local, recipe.regularizer_weight) == (2, 6, 0.05)
    assert (recipe.crop_scale, recipe.local_scale) == ((0.3, 1.0), (0.05, 0.3))
    assert (recipe.projector_dim, recipe.projector_layers) == (2048, 3)
    transform = recipe.build_transform(recipe.preprocessing(3))
    assert [colour.blur_probability for colour in transform.colour] == [1.0, 0.1, 0.5]


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"encoder": "vit"}, 96),
        ({"encoder": "vit", "patch_size": 14}, 98),
        ({"encoder": "vit", "patch_size": 4, "image_size": 32}, 12),
        ({"image_size": 64}, 24),
        ({"image_size": 32, "strides": (2, 2, 1)}, 12),
        ({"local_size": 50}, 50),
    ],
)
def test_local_views_are_three_sevenths_of_the_global_ones(options, size):
    recipe = LeJEPARecipe(**options)
    assert recipe.build_transform(recipe.preprocessing(3)).local_size == size


def test_a_local_size_that_the_patch_does_not_divide_is_refused_at_once():
    with pytest.raises(ValueError, match=r"--local-size 10 is not a whole number of patches of 4 .* take 12"):
        dataclasses.replace(VIT, local_size=10).build_learner(3, 10)
    dataclasses.replace(VIT, local_size=10, num_local=0).build_learner(3, 10)


def test_every_option_reaches_its_part():
    recipe = dataclasses.replace(
        VIT,
        pool="mean_max",
        projector_dim=24,
        projector_out=8,
        projector_layers=2,
        regularizer=collapse.SIGReg(num_slices=9),
        regularizer_weight=0.2,
        num_global=3,
        num_local=1,
        local_size=8,
        flip=0.25,
    )
    learner = recipe.build_learner(1, 10)
    assert isinstance(learner, LeJEPA)
    assert isinstance(learner.encoder, ViT)
    assert learner.pool == MeanMaxPool()
    assert learner.projector.config == {"in_dim": 32, "hidden_dim": 24, "out_dim": 8, "num_layers": 2}
    loss = learner.regularizer
    assert (loss.weight, loss.num_global_views, loss.regularizer.num_slices) == (0.2, 3, 9)
    transform = recipe.build_transform(recipe.preprocessing(1))
    assert (transform.num_global, transform.num_local, transform.local_size) == (3, 1, 8)
    assert transform.flip_probability == 0.25
    assert isinstance(LeJEPARecipe().build_learner(3, 10).encoder, ConvEncoder)


def test_a_vision_transformer_gets_its_sizes():
    encoder = VIT.build_encoder(3)
    assert isinstance(encoder, ViT)
    assert {name: encoder.config[name] for name in ("patch_size", "embed_dim", "depth", "num_heads")} == {
        "patch_size": [4, 4],
        "embed_dim": 16,
        "depth": 1,
        "num_heads": 2,
    }
    assert encoder(torch.zeros(1, 3, VIT.local_image_size, VIT.local_image_size)).shape == (1, 9, 16)


def test_learners_of_one_recipe_count_apart():
    first, second = VIT.build_learner(1, 10), VIT.build_learner(1, 10)
    first.regularizer.compute(*torch.randn(3, 8, 4))
    counts = [part.regularizer.regularizer.num_calls for part in (first, second)]
    assert counts == [1, 0]
    assert VIT.regularizer.num_calls == 0


def test_flags_reach_the_regularizer_and_come_back_from_json():
    flags = ["--regularizer.num-slices", "32", "--regularizer-weight", "0.1", "--num-local", "2"]
    recipe = parse(["lejepa-tiny", *flags, "--regularizer.t-max", "2.5"]).recipe
    assert (recipe.regularizer.num_slices, recipe.regularizer.t_max) == (32, 2.5)
    assert (recipe.regularizer_weight, recipe.num_local) == (0.1, 2)
    stored = json.loads(json.dumps(to_json(recipe)))
    assert stored["regularizer"]["num_slices"] == 32
    assert to_json(from_json(LeJEPARecipe(), stored)) == stored

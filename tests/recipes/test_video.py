"""The video recipes: defaults as released, every option reaches its part, run.json brings it all back."""

import dataclasses
import json

import numpy as np
import pytest
import torch

from torchjepa.cli.train import parse
from torchjepa.data import MovingDigitsSource, SampleKeys
from torchjepa.energy import L2Energy, LpEnergy
from torchjepa.masking import TubeMasking
from torchjepa.models import VJEPA, VJEPA2, LayerNormTargets
from torchjepa.nn import RotaryPositions
from torchjepa.recipes import VJEPA2Recipe, VJEPARecipe
from torchjepa.recipes.find import find_recipe
from torchjepa.recipes.serial import from_json, to_json
from torchjepa.types import Batch, Grid

SMALL = {
    "image_size": 32,
    "num_frames": 8,
    "patch_size": 8,
    "embed_dim": 24,
    "depth": 2,
    "num_heads": 2,
    "predictor_dim": 16,
    "predictor_depth": 1,
    "predictor_heads": 1,
}


def test_by_default_it_is_v_jepa_as_released():
    recipe = VJEPARecipe(**SMALL)
    learner = recipe.build_learner(3, 10)
    assert isinstance(learner, VJEPA)
    assert learner.masks == (TubeMasking.short_range(), TubeMasking.long_range())
    assert learner.mask_tokens == (0, 1)
    assert (learner.energy, learner.target_norm) == (LpEnergy(p=1.0), LayerNormTargets())
    assert learner.regularizer is None
    assert learner.encoder.config["positions"] == learner.predictor.config["positions"] == "thw"
    assert learner.encoder.grid((8, 32, 32)) == Grid(t=4, h=4, w=4)
    preprocessing = recipe.preprocessing(3)
    assert (preprocessing.num_frames, preprocessing.frame_rate) == (8, 7.5)
    transform = recipe.build_transform(preprocessing)
    assert (transform.scale, transform.ratio, transform.flip_probability) == ((0.3, 1.0), (0.75, 1.35), 0.5)
    assert (transform.num_clips, transform.rate_jitter, transform.short) == (1, 0.0, "hold")


def test_v_jepa_2_turns_by_one_mask_token_and_keeps_its_momentum():
    learner = VJEPA2Recipe(**SMALL).build_learner(3, 10)
    assert isinstance(learner, VJEPA2)
    assert learner.mask_tokens == (0, 0)
    assert learner.predictor.config["num_mask_tokens"] == 1
    for network in (learner.encoder, learner.predictor):
        assert network.config["positions"] == RotaryPositions().config
    assert {learner.scheduled(step)["momentum"] for step in range(12)} == {0.99925}


def test_every_option_reaches_its_part():
    recipe = VJEPARecipe(
        **SMALL,
        tubelet_size=4,
        positions="rope-released",
        masks=(TubeMasking(num_blocks=3),),
        energy=L2Energy(),
        target_layers=(0, -1),
        frame_rate=None,
        crop_ratio=(1.0, 1.0),
        flip=0.0,
        rate_jitter=0.5,
        num_clips=2,
        short_clips="refuse",
    )
    learner = recipe.build_learner(1, 10)
    assert learner.encoder.config["patch_size"] == [4, 8, 8]
    assert learner.encoder.config["positions"] == RotaryPositions(pairing="released").config
    assert learner.masks == (TubeMasking(num_blocks=3),)
    assert learner.energy == L2Energy()
    assert (learner.target_layers, learner.predictor.target_dim) == ((0, -1), 48)
    preprocessing = recipe.preprocessing(1)
    assert preprocessing.frame_rate is None
    transform = recipe.build_transform(preprocessing)
    assert (transform.ratio, transform.flip_probability) == ((1.0, 1.0), 0.0)
    assert (transform.rate_jitter, transform.num_clips, transform.short) == (0.5, 2, "refuse")


def test_stretched_schedules_end_where_the_released_run_ends():
    """The released numbers: momentum 0.9996, learning rate 7.5e-5, weight decay 0.3656 at the last of 90,000 steps."""
    recipe = find_recipe("vjepa-large")
    settings, last = recipe.train_settings(recipe.steps), recipe.steps - 1
    assert settings.learning_rate(int(recipe.warmup * recipe.steps) - 1) == pytest.approx(6.25e-4)
    assert settings.learning_rate(last) == pytest.approx(7.5e-5, rel=0.01)
    assert settings.weight_decay(last) == pytest.approx(0.3656, abs=1e-4)
    assert recipe.build_ema(recipe.steps).get_momentum(last) == pytest.approx(0.9996, abs=1e-6)


def test_the_schedules_of_v_jepa_2_stay_after_the_warm_up():
    recipe = find_recipe("vjepa2-large")
    settings = recipe.train_settings(recipe.steps)
    assert settings.learning_rate(0) == pytest.approx(1e-4, rel=0.01)
    for step in (12_000, 100_000, 239_999):
        assert settings.learning_rate(step) == pytest.approx(5.25e-4)
        assert settings.weight_decay(step) == pytest.approx(0.04)


def test_flags_and_run_json_carry_the_options():
    flags = ["--num-frames", "32", "--positions", "rope", "--num-clips", "2", "--target-layers", "1", "3"]
    recipe = parse(["vjepa-tiny", *flags]).recipe
    assert (recipe.num_frames, recipe.positions, recipe.num_clips) == (32, "rope", 2)
    assert recipe.target_layers == (1, 3)
    masks = (dataclasses.replace(recipe.masks[0], num_blocks=5), recipe.masks[1])
    changed = dataclasses.replace(recipe, masks=masks)
    plain = find_recipe("vjepa-tiny")
    assert from_json(plain, json.loads(json.dumps(to_json(changed)))) == changed


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_frames": 15}, "--num-frames must be a multiple of --tubelet-size, at least 1, got 15 and 2"),
        ({"schedule_stretch": 0.5}, "--schedule-stretch must be at least 1, got 0.5"),
        ({"masks": ()}, "at least one mask"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        VJEPARecipe(**wrong)


def test_it_learns_from_the_clips_of_a_source():
    recipe = dataclasses.replace(find_recipe("vjepa-digits"), **SMALL, num_clips=2)
    source = MovingDigitsSource("train", 6)
    transform = recipe.build_transform(recipe.preprocessing(source.num_channels))
    crops = [
        transform.read(source, index, SampleKeys(0, np.zeros(1, np.int64), np.array([index])))
        for index in range(6)
    ]
    together = tuple(torch.cat(parts, dim=1) for parts in zip(*crops))
    views = transform.finish(together, SampleKeys(0, np.zeros(6, np.int64), np.arange(6)))
    assert [view.shape for view in views] == [(6, 1, 8, 32, 32)] * 2
    learner = recipe.seeded_learner(1, 10)
    loss = learner.loss(Batch(views, torch.arange(6), torch.full((6,), -1)), 0)
    loss.total.backward()
    assert torch.isfinite(loss.total)
    assert all(p.grad is not None for p in learner.encoder.parameters())


def test_without_data_it_opens_the_moving_digits():
    split = find_recipe("vjepa-digits").open_data()
    assert isinstance(split.train, MovingDigitsSource)
    assert (split.train.split, split.test.split) == ("train", "test")

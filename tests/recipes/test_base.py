import math
from dataclasses import fields, replace

import pytest
import torch

from torchjepa.recipes import JointEmbeddingRecipe, Recipe
from torchjepa.recipes.find import find_recipe

RECIPE = JointEmbeddingRecipe(image_size=16, widths=(4,), depths=(1,), strides=(2,), projector_dim=8)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"steps": 0}, "--steps must be a number of at least 1, got 0"),
        ({"batch_size": -1}, "--batch-size must be a number of at least 1"),
        ({"accumulate": 0}, "--accumulate"),
        ({"image_size": 0}, "--image-size"),
        ({"num_workers": -1}, "--num-workers must be a number of at least 0"),
        ({"seed": -1}, "--seed"),
        ({"log_every": 0}, "--log-every"),
        ({"checkpoint_every": 0}, "--checkpoint-every"),
        ({"keep_checkpoints": 0}, "--keep-checkpoints"),
        ({"probe_every": -1}, "--probe-every"),
        ({"probe_samples": 1}, "--probe-samples must be a number of at least 2"),
        ({"judge_samples": 0}, "--judge-samples must be a number of at least 2"),
        ({"lr": math.nan}, "--lr must be a number of at least 0, got nan"),
        ({"lr": math.inf}, "--lr must be a number of at least 0, got inf"),
        ({"weight_decay": -0.1}, "--weight-decay"),
        ({"final_weight_decay": -0.1}, "--final-weight-decay must be a number of at least 0, got -0.1"),
        ({"warmup": 1.0}, "--warmup is a share"),
        ({"holdout": 0.0}, "--holdout is a share"),
        ({"max_data_errors": -0.1}, "--max-data-errors is a share"),
        ({"epochs": 0.0}, "--epochs must be positive"),
        ({"epochs": math.nan}, "--epochs must be positive"),
        ({"name": ""}, "--name is the name of a folder"),
        ({"name": "a/b"}, "--name is the name of a folder"),
        ({"name": ".."}, "--name is the name of a folder"),
    ],
)
def test_a_value_that_no_run_can_have_is_refused_by_its_flag(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(RECIPE, **change)


def test_every_number_has_a_bound_or_a_check_of_its_own() -> None:
    elsewhere = {"clip_grad", "devices", "mean", "std"}  # by TrainSettings and Preprocessing
    numbers = [
        field.name
        for field in fields(Recipe)
        if any(word in str(field.type) for word in ("int", "float")) and field.name not in elsewhere
    ]
    for name in numbers:
        with pytest.raises(ValueError, match=name.replace("_", "-")):
            replace(RECIPE, **{name: -1})


@pytest.mark.parametrize(
    ("epochs", "num_samples", "batch_size", "steps"),
    [(None, 100, 10, 1000), (2.0, 100, 10, 20), (0.5, 100, 10, 5), (0.01, 100, 10, 1), (3.0, 105, 10, 32)],
)
def test_epochs_take_precedence_over_steps(
    epochs: float | None, num_samples: int, batch_size: int, steps: int
) -> None:
    recipe = replace(RECIPE, epochs=epochs, batch_size=batch_size)
    assert recipe.total_steps(num_samples) == steps


def test_the_learning_rate_warms_up_over_its_share_of_the_steps() -> None:
    schedule = replace(RECIPE, lr=1.0, start_lr=0.0, final_lr=0.0, warmup=0.25).learning_rate(100)
    rates = [schedule(step) for step in range(100)]
    assert rates.index(max(rates)) == 24  # the update after the 25th has begun its descent
    assert rates[11] == pytest.approx(12 / 25)
    assert rates[-1] == 0.0


def test_weight_decay_is_constant_or_ends_where_it_is_told() -> None:
    constant = replace(RECIPE, weight_decay=0.1).weight_decay_schedule(10)
    assert {round(constant(step), 12) for step in range(10)} == {0.1}
    rising = replace(RECIPE, weight_decay=0.1, final_weight_decay=0.4).weight_decay_schedule(10)
    assert rising(9) == pytest.approx(0.4)


def test_preprocessing_has_imagenet_statistics_for_colour() -> None:
    colour, gray = RECIPE.preprocessing(3), RECIPE.preprocessing(1)
    assert colour.mean == (0.485, 0.456, 0.406)
    assert (gray.mean, gray.std, gray.num_channels) == ((0.5,), (0.25,), 1)


def test_initial_weights_follow_from_the_seed_and_disturb_nobody() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first = RECIPE.seeded_learner(1, 10).state_dict()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(8)
    again = RECIPE.seeded_learner(1, 10).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_settings_reach_the_engine() -> None:
    recipe = replace(
        find_recipe("digits"), accumulate=2, clip_grad=1.5, precision="bf16-mixed", devices=2, seed=3
    )
    settings = recipe.train_settings(50)
    assert (settings.total_steps, settings.global_batch_size, settings.accumulate) == (50, 128, 2)
    assert (settings.clip_grad, settings.precision, settings.devices) == (1.5, "bf16-mixed", 2)
    assert (settings.seed, settings.checkpoint_every) == (3, recipe.checkpoint_every)


def test_preprocessing_takes_the_statistics_it_is_given() -> None:
    given = find_recipe("digits").__class__(mean=(0.1,), std=(0.3,)).preprocessing(1)
    assert (given.mean, given.std) == ((0.1,), (0.3,))
    assert find_recipe("ijepa-digits").preprocessing(1).mean == (0.0,)

"""jepa estimate says what jepa train would take."""

import json
import subprocess
import sys

import pytest

from tests.cli.conftest import Jepa
from tests.cli.tiny import DIGITS, IJEPA
from torchjepa.cli.estimate import view_shapes
from torchjepa.recipes.find import find_recipe


def test_json_holds_parameters_operations_and_memory(jepa: Jepa) -> None:
    outcome = jepa("estimate", "ijepa-tiny", *IJEPA, "--no-speed", "--json")
    assert outcome.code == 0, outcome.err
    content = json.loads(outcome.out)
    assert set(content["parameters"]) == {"encoder", "target_encoder", "predictor"}
    assert set(content["flops_per_sample"]) >= {"encoder", "target_encoder", "predictor", "backward"}
    assert content["memory"]["tensors"] == sum(content["memory"]["at_peak"].values())
    assert content["total_steps"] == 3
    assert "measured" not in content


def test_several_devices_say_what_is_sent_and_that_it_is_not_measured(jepa: Jepa) -> None:
    outcome = jepa("estimate", "digits", *DIGITS, "--devices", 4)
    assert outcome.code == 0, outcome.err
    for words in ("batch 8 on 4 devices", "sent by each device in a step", "not measured", "of 2 samples"):
        assert words in outcome.out


def test_flags_are_those_of_train(jepa: Jepa) -> None:
    for words in (("--batch-sze", 8), ("--lr", -1)):
        estimate, train = (jepa(command, "digits", *DIGITS, *words) for command in ("estimate", "train"))
        assert estimate.code == train.code == 2
        assert estimate.err == train.err


def test_a_batch_that_does_not_split_over_the_devices_is_refused(jepa: Jepa) -> None:
    outcome = jepa("estimate", "digits", *DIGITS, "--devices", 3)
    assert outcome.code == 2
    assert "does not split evenly over 3 process(es)" in outcome.err


def test_help_names_its_own_flags(jepa: Jepa) -> None:
    outcome = jepa("estimate", "digits", "--help")
    assert outcome.code == 0
    assert "--no-speed" in outcome.out
    assert "--batch-size" in outcome.out


def test_nothing_is_written(jepa: Jepa, empty_folder) -> None:
    jepa("estimate", "digits", *DIGITS, "--no-speed")
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("ijepa-tiny", [(3, 224, 224)]),
        ("digits", [(3, 32, 32)] * 2),
        ("lejepa-tiny", [(3, 64, 64)] * 2 + [(3, 24, 24)] * 4),
    ],
)
def test_shapes_are_those_of_the_views(name: str, shapes: list[tuple[int, ...]]) -> None:
    assert view_shapes(find_recipe(name), 3) == shapes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "sizes"),
    [
        ("32", "--image-size 32 --patch-size 4 --batch-size 64"),
        ("32", "--image-size 96 --patch-size 8 --batch-size 16"),
        ("bf16-mixed", "--image-size 96 --patch-size 8 --batch-size 16"),
    ],
)
def test_memory_is_within_15_percent_of_the_measured_peak(precision: str, sizes: str) -> None:
    words = [*sizes.split(), "--accelerator", "cpu", "--precision", precision, "--json"]
    command = [sys.executable, "-m", "torchjepa", "estimate", "ijepa-tiny", *words]
    content = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert content["memory"]["process"] == pytest.approx(content["measured"]["bytes"], rel=0.15)


def test_a_masked_model_with_a_regularizer_is_followed_and_does_not_crash() -> None:
    # Its two encoders are copies with batch norms; following them three times freed a storage of torch's twice.
    code = """
import gc
from torchjepa.engine import follow_update
from torchjepa.recipes.find import find_recipe
recipe = find_recipe("ijepa-digits")
for _ in range(3):
    print(follow_update(lambda: recipe.seeded_learner(1, 100), [(1, 32, 32)], recipe.train_settings(100)).bytes)
    gc.collect()
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(set(done.stdout.split())) == 1

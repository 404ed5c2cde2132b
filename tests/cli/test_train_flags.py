import dataclasses
import inspect
import json
from pathlib import Path

import pytest
import torch

from tests.cli.conftest import Jepa
from torchjepa.cli.train import parse
from torchjepa.recipes.base import Recipe
from torchjepa.recipes.find import find_recipe, recipe_names
from torchjepa.recipes.serial import flatten, to_json

OWN = '''"""Mine, in an hour, 90 %."""
from dataclasses import dataclass
from torchjepa.recipes import JointEmbeddingRecipe
from parts_of_mine import WIDTHS

class Spread:
    """A regularizer without a base, or fields."""
    def compute(self, *views):
        raise NotImplementedError
    def loss(self, *views):
        return -sum(view.std() for view in views)

@dataclass(frozen=True, kw_only=True)
class Mine(JointEmbeddingRecipe):
    bonus: float = 1.5
    """What it is for."""

recipe = Mine(widths=WIDTHS, regularizer=Spread(), steps=7)
'''


@pytest.fixture
def own(empty_folder: Path) -> Path:
    (empty_folder / "parts_of_mine.py").write_text("WIDTHS = (4, 8)\n")
    path = empty_folder / "my_recipe.py"
    path.write_text(OWN)
    return path


def store(path: Path, recipe: str, settings: dict) -> Path:
    path.mkdir(parents=True)
    (path / "run.json").write_text(json.dumps({"recipe": recipe, "settings": settings}))
    return path / "run.json"


@pytest.mark.parametrize("name", recipe_names())
def test_help_lists_every_field_with_its_meaning_and_default(jepa: Jepa, name: str) -> None:
    done = jepa("train", name, "--help")
    assert done.code == 0
    text = " ".join(done.out.replace("│", " ").split())
    for key in flatten(to_json(find_recipe(name))):
        if not key.endswith("class"):
            place, dot, field = key.replace("_", "-").rpartition(".")
            # A part behind `... | None` is shown whole, with all that is in it, and chosen in the recipe's file.
            wholes = [".".join(place.split(".")[:depth]) for depth in range(1, place.count(".") + 2)]
            shown = [f"--{place}{dot}{field} ", f"--{place}{dot}no-{field} "]
            assert any(flag in text for flag in shown + [f"--{whole} {{fixed}}" for whole in wholes]), key
    assert "Side of the square that the network sees, in pixels." in text
    assert f"(default: {find_recipe(name).image_size})" in text


def test_help_says_what_the_recipe_is_and_which_others_there_are(jepa: Jepa) -> None:
    out = jepa("train", "--help").out
    assert "VICReg on the embedded handwritten digits" in out
    assert all(name in out for name in recipe_names())


def test_every_field_of_a_recipe_has_a_meaning() -> None:
    for kind in {Recipe, *(type(find_recipe(name)) for name in recipe_names())}:
        source = inspect.getsource(kind)
        for field in dataclasses.fields(kind):
            if f"    {field.name}:" in source:
                after = source.split(f"    {field.name}:", 1)[1].split("\n", 1)[1].lstrip()
                assert after.startswith('"""'), f"{kind.__name__}.{field.name}"


def test_without_arguments_it_is_the_default_recipe() -> None:
    request = parse([])
    assert (request.recipe_name, request.recipe.name, request.overrides) == (
        "digits",
        "digits",
        {"name": "digits"},
    )


def test_flags_land_in_the_recipe_and_among_the_overrides() -> None:
    request = parse(
        ["vicreg-tiny", "--steps", "5", "--regularizer.gamma", "0.5", "--no-judge", "--name", "x"]
    )
    assert (request.recipe.steps, request.recipe.judge) == (5, False)
    assert request.overrides == {"steps": 5, "regularizer.gamma": 0.5, "judge": False, "name": "x"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["ijepa-tinny"], "There is no recipe 'ijepa-tinny'. Did you mean ijepa-tiny?"),
        (["ijepa_tiny"], "Did you mean ijepa-tiny?"),
        (["--stpes", "3"], "There is no option '--stpes'. Did you mean --steps?"),
        (["--regularizer.gama", "3"], "Did you mean --regularizer.gamma?"),
        (["--steps", "3", "ijepa-tiny"], "The recipe comes first: jepa train ijepa-tiny"),
        (["--from", "nowhere/run.json"], "There is no nowhere/run.json"),
        (["nothing.py:recipe"], "There is no recipe file"),
        (["--steps", "0"], "--steps must be a number of at least 1, got 0."),
        (["--lr", "-1"], "--lr must be a number of at least 0, got -1.0."),
        (["--lr", "nan"], "--lr must be a number of at least 0, got nan."),
        (["--seed", "-1"], "--seed must be a number of at least 0"),
        (["--holdout", "1"], "--holdout is a share of the data in (0, 1), got 1.0."),
        (["--max-data-errors", "2"], "--max-data-errors is a share of the data in [0, 1], got 2.0."),
        (["--warmup", "1"], "--warmup is a share of the steps in [0, 1), got 1.0."),
        (["--epochs", "-1"], "--epochs must be positive, got -1.0"),
        (["--name", "../x"], "--name is the name of a folder under --runs"),
        (["--precision", "33"], "precision must be one of 32, bf16-mixed, 16-mixed, got '33'"),
        (["--accelerator", "gpuu"], "did you mean 'gpu'?"),
        (["--batch-size", "10", "--accumulate", "3"], "does not split evenly"),
        pytest.param(
            ["--accelerator", "cuda"],
            "There is no device 'cuda' here",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["--devices", "0"], "devices must be an integer of at least 1, got 0"),
        (["--clip-grad", "-1"], "clip_grad must be a number above 0"),
    ],
)
def test_what_cannot_work_is_one_line_before_anything_is_written(
    jepa: Jepa, empty_folder: Path, argv: list[str], message: str
) -> None:
    done = jepa("train", *argv)
    assert done.code == 2
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not list(empty_folder.iterdir())


@pytest.mark.parametrize(
    ("flag", "value"), [("--steps", "many"), ("--regularizer.eps", "-1"), ("--name", None)]
)
def test_a_value_of_the_wrong_type_is_exit_code_2(jepa: Jepa, flag: str, value: str | None) -> None:
    done = jepa("train", *([flag] if value is None else [flag, value]))
    assert done.code == 2
    assert flag.lstrip("-").partition(".")[0] in done.err


def test_a_recipe_of_the_users_own(own: Path) -> None:
    request = parse(["my_recipe.py:recipe", "--bonus", "2"])
    assert type(request.recipe).__name__ == "Mine"
    assert request.recipe.name == "my_recipe"
    assert request.recipe_name == f"{own}:recipe"
    assert request.overrides == {"bonus": 2.0, "name": "my_recipe"}


def test_help_of_a_recipe_of_the_users_own(own: Path, jepa: Jepa) -> None:
    done = jepa("train", "my_recipe.py", "--help")
    assert "Mine, in an hour, 90 %." in done.out
    assert "What it is for." in done.out


def test_from_repeats_a_run_with_its_settings_under_a_free_name(empty_folder: Path) -> None:
    settings = {**to_json(find_recipe("vicreg-tiny")), "steps": 9, "name": "x"}
    path = store(empty_folder / "runs" / "x", "vicreg-tiny", settings)
    assert parse(["--from", str(path)]).recipe.name == "x-2"
    (empty_folder / "runs" / "x-2").mkdir()
    request = parse([f"--from={path.parent}", "--lr", "0.5"])
    assert (request.recipe_name, request.recipe.name) == ("vicreg-tiny", "x-3")
    assert (request.recipe.steps, request.recipe.lr) == (9, 0.5)
    assert request.overrides == {"steps": 9, "lr": 0.5, "name": "x-3"}
    assert parse(["--from", str(path), "--name", "y"]).recipe.name == "y"


def test_from_takes_the_recipe_of_the_users_own(own: Path, empty_folder: Path) -> None:
    settings = {**to_json(find_recipe(str(own))), "bonus": 3.0}
    path = store(empty_folder / "runs" / "x", f"{own}:recipe", settings)
    assert parse(["--from", str(path)]).recipe.bonus == 3.0  # type: ignore[attr-defined]
    moved = own.rename(own.with_name("moved.py"))
    assert parse([str(moved), "--from", str(path)]).recipe.bonus == 3.0  # type: ignore[attr-defined]


def test_from_refuses_another_recipe(empty_folder: Path, jepa: Jepa) -> None:
    path = store(empty_folder / "runs" / "x", "digits", {})
    done = jepa("train", "vicreg-tiny", "--from", path)
    assert (done.code, "is of the recipe 'digits'" in done.err) == (2, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"stepz": 3}, "There is no field 'stepz'. Did you mean steps?"),
        ({"regularizer": {"class": "VICReg", "gama": 1.0}}, "Did you mean regularizer.gamma?"),
        ({"regularizer": {"class": "BarlowTwins"}}, "regularizer is a BarlowTwins in the file but a VICReg"),
        ({"steps": "many"}, "steps = 'many'"),
    ],
)
def test_a_run_json_that_does_not_fit_is_explained(
    jepa: Jepa, empty_folder: Path, settings: dict, message: str
) -> None:
    path = store(empty_folder / "runs" / "x", "digits", settings)
    done = jepa("train", "--from", path)
    assert done.code == 2
    assert message in done.err


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"recipe": "digits", "settings": 3}'])
def test_a_damaged_run_json_is_one_line(jepa: Jepa, empty_folder: Path, text: str) -> None:
    path = store(empty_folder / "runs" / "x", "digits", {})
    path.write_text(text)
    done = jepa("train", "--from", path)
    assert (done.code, "is not the run.json of a run" in done.err) == (2, True)


def test_resume_finds_the_recipe_by_the_name_alone(empty_folder: Path) -> None:
    settings = {**to_json(find_recipe("ijepa-tiny")), "embed_dim": 48, "name": "x"}
    store(empty_folder / "elsewhere" / "x", "ijepa-tiny", settings)
    request = parse(["--name", "x", "--runs", "elsewhere", "--resume", "--num-workers", "2"])
    assert request.recipe_name == "ijepa-tiny"
    assert request.recipe.embed_dim == 48  # type: ignore[attr-defined]
    assert (request.resume, request.recipe.name, request.recipe.num_workers) == (True, "x", 2)


@pytest.mark.parametrize(("word", "value"), [("--no-tensorboard", False), ("--tensorboard", True)])
def test_a_switch_has_both_forms_whatever_the_stored_run_says(
    empty_folder: Path, word: str, value: bool
) -> None:
    for stored in (False, True):
        name = f"stored-{stored}"
        settings = {**to_json(find_recipe("digits")), "tensorboard": stored, "name": name}
        store(empty_folder / "runs" / name, "digits", settings)
        assert parse(["--name", name, "--resume", word]).recipe.tensorboard is value

"""Open a finished run: its recipe, its encoder and the encoder it started from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from torchjepa.cli.pipeline import deployable
from torchjepa.engine import RunFolder
from torchjepa.hub import LoadedEncoder, load_encoder
from torchjepa.recipes.base import Recipe
from torchjepa.recipes.find import find_recipe
from torchjepa.recipes.serial import from_json


@dataclass(frozen=True)
class OpenedRun:
    """A run read back from its folder.

    Args:
        folder: where it is.
        recipe: the recipe as it was run.
        recipe_name: what it is called on the command line.
        encoder: the deployable encoder.
        about: the whole of run.json.
    """

    folder: RunFolder
    recipe: Recipe
    recipe_name: str
    encoder: LoadedEncoder
    about: dict[str, Any]

    def untrained(self) -> nn.Module:
        """The encoder as it was at step 0."""
        channels = self.encoder.preprocessing.num_channels
        return deployable(self.recipe.seeded_learner(channels, 1)).eval()


def open_run(path: str) -> OpenedRun:
    """Open a run folder.

    Raises:
        ValueError: there is no run, or it has no encoder yet.
    """
    folder = RunFolder.open(path)
    about = json.loads(folder.run_json.read_text())
    recipe = from_json(find_recipe(about["recipe"]), about["settings"])
    if not folder.encoder.is_dir():
        raise ValueError(
            f"{path} has no encoder yet: its training has not ended. "
            f"Go on with it: jepa train {about['recipe']} --name {folder.path.name} --resume"
        )
    custom = json.loads((folder.encoder / "config.json").read_text())["architecture"] == "custom"
    model = None
    if custom:
        channels = json.loads((folder.encoder / "preprocessing.json").read_text())["num_channels"]
        model = deployable(recipe.seeded_learner(channels, 1))
    return OpenedRun(folder, recipe, about["recipe"], load_encoder(folder.encoder, model), about)


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` is the best present.

    Raises:
        ValueError: this machine does not have it.
    """
    if name != "auto":
        try:
            torch.zeros(1, device=name)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(
                f"--device {name}: {str(error).splitlines()[0]}; auto takes the best present."
            ) from None
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")

"""Open a run: its recipe, its encoder, the encoder it started from, and its learner as last kept."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from torchjepa.cli.finish import deployable
from torchjepa.cli.run_json import StoredRun, read_run, resume_command
from torchjepa.data import Preprocessing
from torchjepa.engine import RunFolder, newest_checkpoint
from torchjepa.engine.checkpoint import check_same_tensors
from torchjepa.hub import LoadedEncoder, load_encoder
from torchjepa.recipes.base import Recipe
from torchjepa.recipes.find import find_recipe
from torchjepa.recipes.serial import from_json


@dataclass(frozen=True)
class Newest:
    """The newest weights of a run.

    Args:
        encoder: the one that is judged.
        learner: all of it, `None` where only the deployed encoder is left.
        step: number of updates done.
        preprocessing: how images become tensors.
        description: where the weights come from, in words.
    """

    encoder: nn.Module
    learner: nn.Module | None
    step: int
    preprocessing: Preprocessing
    description: str


@dataclass(frozen=True)
class OpenedRun:
    """A run read back from its folder.

    Args:
        folder: where it is.
        stored: what its run.json says.
    """

    folder: RunFolder
    stored: StoredRun

    @cached_property
    def recipe(self) -> Recipe:
        """The recipe as it was run; needs the user's file where it was one."""
        return from_json(find_recipe(self.stored.recipe), self.stored.settings)

    @cached_property
    def encoder(self) -> LoadedEncoder:
        """The deployable encoder."""
        model = None
        if _read(self.folder.encoder / "config.json").get("architecture") == "custom":
            channels = _read(self.folder.encoder / "preprocessing.json").get("num_channels", 3)
            model = self._initial(int(channels))
        return load_encoder(self.folder.encoder, model)

    def untrained(self) -> nn.Module:
        """The encoder as it was at step 0."""
        return self._initial(self.encoder.preprocessing.num_channels).eval()

    def newest(self, num_channels: int) -> Newest:
        """The learner of the newest whole checkpoint, or the deployed encoder where there is none.

        Args:
            num_channels: of the images, for a run that has no encoder yet.

        Raises:
            ValueError: no checkpoint is whole, or it is of another learner.
        """
        found = newest_checkpoint(self.folder.checkpoints)
        if found is None:
            encoder, description = self.encoder, f"The encoder in {self.folder.encoder}"
            return Newest(encoder.model, None, self._total_steps, encoder.preprocessing, description)
        kept = _read(self.folder.encoder / "preprocessing.json").get("num_channels", num_channels)
        learner, tensors = self.recipe.seeded_learner(int(kept), self._total_steps), found.tensors()
        check_same_tensors(learner, tensors, found.path)
        learner.load_state_dict(tensors)
        return Newest(
            deployable(learner), learner, found.step, self.recipe.preprocessing(int(kept)), str(found.path)
        )

    @property
    def _total_steps(self) -> int:
        return int(self.stored.content.get("total_steps", 1))

    def _initial(self, num_channels: int) -> nn.Module:
        return deployable(self.recipe.seeded_learner(num_channels, self._total_steps))


def open_run(path: str) -> OpenedRun:
    """Open a run folder.

    Raises:
        ValueError: there is no run, or it has no encoder yet.
    """
    folder = RunFolder.open(path)
    stored = read_run(folder.run_json)
    if not folder.encoder.is_dir():
        raise ValueError(
            f"{path} has no encoder yet: its training has not ended. Go on with it: "
            f"{resume_command(Path(path))}"
        )
    return OpenedRun(folder, stored)


def _read(path: Path) -> dict[str, Any]:
    # Only a look: `load_encoder` says what is wrong with a damaged file.
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}

"""Open a finished run: its recipe, its encoder and the encoder it started from."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from torchjepa.cli.finish import deployable
from torchjepa.cli.run_json import StoredRun, read_run, resume_command
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

    def _initial(self, num_channels: int) -> nn.Module:
        total_steps = int(self.stored.content.get("total_steps", 1))
        return deployable(self.recipe.seeded_learner(num_channels, total_steps))


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

"""run.json: what a run was started with and on, and whether what goes on is still that run."""

from __future__ import annotations

import json
import platform
import shlex
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torchjepa.recipes.serial import differences, to_json

if TYPE_CHECKING:
    from torchjepa.cli.request import Request
    from torchjepa.data import DataSplit

_PACKAGES = ("torchjepa", "torch", "numpy", "lightning-fabric", "safetensors", "Pillow", "scikit-learn")
# What may change when a run goes on; anything else would make it another run. Data may have moved, and are
# compared by their fingerprints.
_FREE = {
    *("data", "test_data", "max_data_errors", "num_workers", "name", "runs"),
    *("accelerator", "devices", "num_nodes", "strategy", "compile", "recompute_activations"),
    *("log_every", "checkpoint_every", "keep_checkpoints", "probe_every", "probe_samples"),
    *("doctor_every", "on_collapse"),
    *("tensorboard", "judge", "judge_samples"),
}


@dataclass(frozen=True)
class StoredRun:
    """A run.json that was read.

    Args:
        path: the file.
        recipe: name of the recipe.
        settings: its fields, as `recipes.serial.to_json` gave them.
        content: the whole of it.
    """

    path: Path
    recipe: str
    settings: dict[str, Any]
    content: dict[str, Any]


def read_run(path: Path) -> StoredRun:
    """Read a run.json, given as the file or as its folder.

    Raises:
        ValueError: there is no such file, or it describes no run.
    """
    path = path / "run.json" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"There is no {path}; give a run folder, or the run.json in it.")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return StoredRun(path, str(content["recipe"]), dict(content["settings"]), content)
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is not the run.json of a run: {type(error).__name__} {error}.") from None


def describe_run(request: Request, split: DataSplit, total_steps: int) -> dict[str, Any]:
    """Everything that repeating the run takes, and what it ran on."""
    recipe = request.recipe
    return {
        "recipe": request.recipe_name,
        "command": ["jepa", *request.argv],
        "overrides": request.overrides,
        "settings": to_json(recipe),
        "total_steps": total_steps,
        "seed": recipe.seed,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in _PACKAGES}},
        "data": {
            "description": split.description,
            "train": split.train.fingerprint(),
            "test": split.test.fingerprint(),
            "classes": list(split.train.classes),
        },
        "device": _describe_device(recipe.accelerator),
    }


def resumed_run(request: Request, stored: StoredRun, split: DataSplit) -> dict[str, Any]:
    """The run.json of a run that goes on: as it was, with what may change as it is now.

    Raises:
        ValueError: a field, or the data, would make it another run.
    """
    changed = differences(to_json(request.recipe), stored.settings)
    fixed = [key for key in changed if key not in _FREE and key.partition(".")[0] in stored.settings]
    if fixed:
        flags = ", ".join(f"--{key.replace('_', '-')}" for key in fixed)
        raise ValueError(
            f"A run goes on with what it was started with: leave out {flags}, or give the new run a --name and "
            "no --resume."
        )
    for part, source in (("train", split.train), ("test", split.test)):
        before = stored.content.get("data", {}).get(part)
        if before is not None and _placeless(before) != _placeless(source.fingerprint()):
            raise ValueError(
                f"The {part} data are not those that {stored.path.parent} was started with (other files, or other "
                "settings of the data); restore them, or start a new run."
            )
    return {**stored.content, "settings": to_json(request.recipe), "overrides": request.overrides}


def resume_command(folder: Path) -> str:
    """The command that goes on with the run of a folder."""
    words = ["jepa", "train", "--name", folder.name, "--runs", str(folder.parent), "--resume"]
    return shlex.join(words)


def _placeless(fingerprint: dict[str, Any]) -> Any:
    values = {key: value for key, value in fingerprint.items() if key != "path"}
    return json.loads(json.dumps(values))


def _describe_device(accelerator: str) -> dict[str, Any]:
    import torch

    from torchjepa.cli.devices import pick_device
    from torchjepa.nn.native.library import describe

    device = pick_device(accelerator)
    name = (
        torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    )
    return {
        "type": device.type,
        "name": name,
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        # Runs with other kernels agree to rounding, and not bit for bit.
        **({"kernels": describe()} if device.type == "cpu" else {}),
    }

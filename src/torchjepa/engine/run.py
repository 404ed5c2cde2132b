"""What a run is: its folder on disk, what hooks see of it, and how it ended."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from torchjepa.engine.devices import is_main_process
from torchjepa.engine.settings import TrainSettings


@dataclass(frozen=True, init=False)
class RunFolder:
    """The folder of one run; every path that other tools read, by name.

    Args:
        path: the folder, `runs/<name>`.
    """

    path: Path

    def __init__(self, path: str | Path) -> None:
        object.__setattr__(self, "path", Path(path))

    @property
    def run_json(self) -> Path:
        """Recipe, resolved configuration, versions, seed, data and device."""
        return self.path / "run.json"

    @property
    def metrics(self) -> Path:
        """One JSON line for each logged step."""
        return self.path / "metrics.jsonl"

    @property
    def checkpoints(self) -> Path:
        """Holds `step-<n>` folders, n the number of updates done."""
        return self.path / "checkpoints"

    @property
    def encoder(self) -> Path:
        """The deployable encoder."""
        return self.path / "encoder"

    @property
    def scores(self) -> Path:
        """What the judging gave."""
        return self.path / "scores.json"

    @property
    def doctor(self) -> Path:
        """One JSON line for each check for collapse during the training."""
        return self.path / "doctor.jsonl"

    @property
    def diagnosis(self) -> Path:
        """The doctor's verdict after the last step."""
        return self.path / "diagnosis.json"

    @property
    def report(self) -> Path:
        """The self-contained page."""
        return self.path / "report.html"

    @property
    def tensorboard(self) -> Path:
        """Event files."""
        return self.path / "tensorboard"

    @property
    def data_errors(self) -> Path:
        """One JSON line for each sample that could not be decoded."""
        return self.path / "data_errors.jsonl"

    @classmethod
    def create(cls, path: str | Path, run_json: dict[str, Any]) -> RunFolder:
        """Make the folder of a new run and write its `run.json`.

        With several processes only the main one writes; the others get the same paths.

        Args:
            path: a folder that is empty or does not exist.
            run_json: what `run.json` shall hold.

        Raises:
            ValueError: the folder holds a run already, or something else.
        """
        folder = cls(path)
        if not is_main_process():
            return folder
        if folder.run_json.exists():
            raise ValueError(
                f"{folder.path} already holds a run. Continue it with --resume, or give another name."
            )
        if folder.path.exists() and (not folder.path.is_dir() or any(folder.path.iterdir())):
            raise ValueError(f"{folder.path} is not an empty folder. Give the run a folder of its own.")
        folder.path.mkdir(parents=True, exist_ok=True)
        write_json(folder.run_json, run_json)
        return folder

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """The folder of an existing run.

        Args:
            path: a folder with a `run.json`.

        Raises:
            ValueError: there is no such folder, or it holds no run.
        """
        folder = cls(path)
        if not folder.path.exists():
            raise ValueError(f"There is no run at {folder.path}: no such folder.")
        if not folder.run_json.is_file():
            raise ValueError(f"{folder.path} is not a run: it holds no run.json.")
        return folder


def write_json(path: str | Path, value: Any) -> None:
    """Write JSON so that a reader finds the old file or the new one, never half of it.

    Args:
        path: the file.
        value: what it shall hold.
    """
    path, text = Path(path), json.dumps(value, indent=2, ensure_ascii=False)
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.write(f"{text}\n")
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


@dataclass(frozen=True)
class TrainResult:
    """How training ended.

    Args:
        step: number of updates done.
        stopped: what ended it early: a signal ("SIGINT" or "SIGTERM"), or the reason that a hook gave to
            `Run.stop` (on other processes than the main one "a hook"); `None` when all steps were done.
        is_main: whether this process is the one that judges and reports; the others should exit.
    """

    step: int
    stopped: str | None = None
    is_main: bool = True


@dataclass
class Run:
    """What hooks see of a run in progress.

    Args:
        learner: the model being trained, as it was passed in. With strategy "fsdp" on several processes its
            tensors are on the meta device, but for steps where a hook `needs_weights`.
        settings: how it is trained.
        folder: where the run is kept.
        device: where the learner is.
        num_samples: size of the training set.
        start_step: the step this process began with; above 0 when resumed.
        step: number of updates done so far.
        log_periods: besides the logged steps, a row is due every so many steps.
        samples_per_second: throughput since the last row, hooks and checkpoints left out.
        seconds: time trained until the last row, all processes of a resumed run together.
        stop_reason: what a hook gave to `stop`.
    """

    learner: nn.Module
    settings: TrainSettings
    folder: RunFolder
    device: torch.device
    num_samples: int
    world_size: int = 1
    is_main: bool = True
    start_step: int = 0
    step: int = 0
    log_periods: tuple[int, ...] = ()
    samples_per_second: float = 0.0
    seconds: float = 0.0
    stop_reason: str | None = None

    def stop(self, reason: str) -> None:
        """Ask for the run to end after the next step, on all processes and with a checkpoint.

        Args:
            reason: becomes `TrainResult.stopped`.
        """
        self.stop_reason = reason

    @property
    def num_samples_seen(self) -> int:
        """Samples seen so far, repeats counted."""
        return self.step * self.settings.global_batch_size

    @property
    def epoch(self) -> float:
        """Passes over the training set so far."""
        return self.num_samples_seen / self.num_samples

    @property
    def learning_rate(self) -> float:
        """The learning rate of the last update."""
        return self.settings.learning_rate(max(self.step - 1, 0))

    def logs(self, step: int) -> bool:
        """Whether `step` ends with a row of figures; hooks that measure do so only then."""
        periods = (self.settings.log_every, *self.log_periods)
        return step == 0 or any(self.settings.last_or_every(step, period) for period in periods)

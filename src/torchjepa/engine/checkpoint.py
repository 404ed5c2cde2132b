"""Checkpoints that are whole or not there: written aside, synced, renamed, and verified before use."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from torchjepa.engine.sharding import whole, whole_tree
from torchjepa.engine.tensor_file import write_tensors

FORMAT = 1
MODEL, TRAINING, MANIFEST = "model.safetensors", "training.pt", "manifest.json"
_NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on disk.

    Args:
        path: its folder.
        step: number of updates done, the step to go on with.
    """

    path: Path
    step: int

    def tensors(self) -> dict[str, Tensor]:
        """The learner's tensors, on the CPU; read from the disk as they are used."""
        return load_file(self.path / MODEL)

    def training(self) -> dict[str, Any]:
        """Optimizer state and what else the run needs to go on; read without running any pickled code.

        Tensors are mapped, so that a process reads no more than it copies.
        """
        return torch.load(self.path / TRAINING, map_location="cpu", weights_only=True, mmap=True)


def save_checkpoint(
    folder: Path,
    step: int,
    learner: nn.Module,
    training: Mapping[str, Any],
    *,
    keep: int,
    is_main: bool = True,
) -> Checkpoint:
    """Write `folder/step-<step>`, whole or not at all, and drop what is older than the newest `keep`.

    Tensors that are sharded are gathered one after the other: no process ever holds two whole ones, but the main
    one all of `training`. The files are the same whatever the number of processes.

    Args:
        folder: the run's `checkpoints/`.
        step: number of updates done.
        learner: its `state_dict` becomes `model.safetensors`.
        training: tensors, numbers and strings for `training.pt`.
        keep: number of checkpoints to keep.
        is_main: whether this process writes; where tensors are sharded the others must take part.

    Raises:
        ValueError: the learner's state holds something else than tensors.
    """
    temporary, final = folder / f".tmp-step-{step}", folder / f"step-{step}"
    state = _state_tensors(learner)
    if not is_main:
        write_tensors(None, state, whole)
        whole_tree(training, keep=False)
        return Checkpoint(final, step)
    folder.mkdir(parents=True, exist_ok=True)
    for stale in folder.glob(".tmp-*"):
        shutil.rmtree(stale)
    temporary.mkdir()
    write_tensors(temporary / MODEL, state, whole)
    torch.save(whole_tree(training, keep=True), temporary / TRAINING)
    _write_manifest(temporary, step)
    if final.exists():  # torn, or it would have been resumed
        shutil.rmtree(final)
    os.rename(temporary, final)
    _sync(folder)
    _prune(folder, step, keep)
    return Checkpoint(final, step)


def _write_manifest(folder: Path, step: int) -> None:
    files = {}
    for name in (MODEL, TRAINING):
        _sync(folder / name)
        files[name] = {"bytes": (folder / name).stat().st_size, "sha256": _sha256(folder / name)}
    manifest = {"format": FORMAT, "step": step, "files": files}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
    _sync(folder / MANIFEST)
    _sync(folder)


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The checkpoints of a run, newest first, not yet verified.

    Args:
        folder: the run's `checkpoints/`.
    """
    found = [(path, _NAME.fullmatch(path.name)) for path in folder.glob("step-*")]
    whole = [Checkpoint(path, int(match.group(1))) for path, match in found if match is not None]
    return sorted(whole, key=lambda checkpoint: checkpoint.step, reverse=True)


def newest_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint that verifies, `None` when there has never been one; warns of each it skips.

    Args:
        folder: the run's `checkpoints/`.

    Raises:
        ValueError: there are checkpoints and none of them verifies.
    """
    checkpoints = list_checkpoints(folder)
    for checkpoint in checkpoints:
        fault = find_fault(checkpoint)
        if fault is None:
            return checkpoint
        warnings.warn(f"Skipped the damaged checkpoint {checkpoint.path}: {fault}.", stacklevel=2)
    if checkpoints:
        raise ValueError(
            f"None of the {len(checkpoints)} checkpoint(s) in {folder} is whole; nothing to resume."
        )
    return None


def find_fault(checkpoint: Checkpoint) -> str | None:
    """What is wrong with a checkpoint on disk, `None` when it is whole.

    Args:
        checkpoint: where to look.
    """
    try:
        manifest = json.loads((checkpoint.path / MANIFEST).read_text(encoding="utf-8"))
        if manifest["format"] != FORMAT:
            return f"its format is {manifest['format']}, this version reads {FORMAT}"
        if manifest["step"] != checkpoint.step:
            return f"its {MANIFEST} is of step {manifest['step']}"
        entries = [(name, manifest["files"][name]) for name in (MODEL, TRAINING)]
        faults = [_fault_of_file(checkpoint.path / name, e["bytes"], e["sha256"]) for name, e in entries]
    except FileNotFoundError:
        return f"it has no {MANIFEST}"
    except OSError as error:
        return f"it cannot be read ({error})"
    except (ValueError, KeyError, TypeError):
        return f"its {MANIFEST} cannot be read"
    return next((fault for fault in faults if fault is not None), None)


def _fault_of_file(path: Path, size: int, digest: str) -> str | None:
    if not path.is_file():
        return f"{path.name} is missing"
    if path.stat().st_size != size:
        return f"{path.name} has {path.stat().st_size} bytes instead of {size}"
    if _sha256(path) != digest:
        return f"the content of {path.name} does not match its sha256"
    return None


def _state_tensors(learner: nn.Module) -> dict[str, Tensor]:
    state = learner.state_dict()
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{type(learner).__name__}.state_dict() holds {name!r}, a {type(value).__name__}; "
                "checkpoints keep tensors only, so register it as a buffer."
            )
    return state


def check_same_tensors(learner: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a checkpoint of another learner.

    Args:
        learner: the model to be restored.
        tensors: what the checkpoint holds.
        path: where it is, for the message.

    Raises:
        ValueError: names or shapes differ; names the first few.
    """
    ours = {name: tuple(value.shape) for name, value in learner.state_dict().items()}
    theirs = {name: tuple(value.shape) for name, value in tensors.items()}
    faults = [f"{name} is new" for name in ours if name not in theirs]
    faults += [f"{name} is gone" for name in theirs if name not in ours]
    faults += [
        f"{name} is {list(shape)}, was {list(theirs[name])}"
        for name, shape in ours.items()
        if name in theirs and theirs[name] != shape
    ]
    if faults:
        more = f" and {len(faults) - 3} more" if len(faults) > 3 else ""
        raise ValueError(
            f"Cannot resume from {path}: the learner is another one ({'; '.join(faults[:3])}{more}). "
            "Resume with the run's own configuration, or train into another folder."
        )


def check_same_run(now: Mapping[str, Any], then: Mapping[str, Any], path: Path) -> None:
    """Refuse to continue a run with settings that would make it another run.

    Args:
        now: the settings that matter, as given.
        then: the same, as kept in the checkpoint.
        path: where it is, for the message.

    Raises:
        ValueError: one differs; names it and both values.
    """
    faults = [
        f"{name} is {value!r}, the run was started with {then.get(name)!r}"
        for name, value in now.items()
        if not _same(value, then.get(name))
    ]
    if faults:
        raise ValueError(
            f"Cannot resume from {path}: {'; '.join(faults)}. "
            "Resume with the run's own settings, or train into another folder."
        )


def _same(now: Any, then: Any) -> bool:
    if isinstance(now, (list, tuple)) and isinstance(then, (list, tuple)):
        return len(now) == len(then) and all(map(_same, now, then))
    if isinstance(now, Mapping) and isinstance(then, Mapping):
        return now.keys() == then.keys() and all(_same(now[key], then[key]) for key in now)
    if isinstance(now, float) and isinstance(then, float):
        # A cosine may differ in its last bit on another machine.
        return math.isclose(now, then, rel_tol=1e-9, abs_tol=1e-15)
    return now == then


def _prune(folder: Path, step: int, keep: int) -> None:
    checkpoints = list_checkpoints(folder)
    # One from a later step can only be a damaged one that the resume went back from.
    ahead = [checkpoint for checkpoint in checkpoints if checkpoint.step > step]
    behind = [checkpoint for checkpoint in checkpoints if checkpoint.step <= step]
    for checkpoint in ahead + behind[keep:]:
        shutil.rmtree(checkpoint.path)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)

"""Checkpoints are whole or not there; damage is found, named and gone around."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from torchjepa.engine import checkpoint as ckpt


def save(folder: Path, step: int, *, keep: int = 3, learner: nn.Module | None = None) -> ckpt.Checkpoint:
    learner = learner or nn.Linear(2, 2)
    return ckpt.save_checkpoint(folder, step, learner, {"step": step, "seconds": 1.5}, keep=keep)


def steps(folder: Path) -> list[int]:
    return [checkpoint.step for checkpoint in ckpt.list_checkpoints(folder)]


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    learner = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    checkpoint = save(tmp_path, 7, learner=learner)
    assert checkpoint.path == tmp_path / "step-7"
    assert checkpoint.training() == {"step": 7, "seconds": 1.5}
    tensors = checkpoint.tensors()
    assert tensors.keys() == learner.state_dict().keys()
    assert all(torch.equal(tensors[name], value) for name, value in learner.state_dict().items())
    assert sorted(path.name for path in checkpoint.path.iterdir()) == sorted(
        ["model.safetensors", "training.pt", "manifest.json"]
    )


def test_shared_and_strided_tensors_are_kept(tmp_path: Path) -> None:
    learner = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    learner[1].weight = learner[0].weight
    learner.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)
    tensors = save(tmp_path, 1, learner=learner).tensors()
    assert torch.equal(tensors["0.weight"], tensors["1.weight"])
    assert torch.equal(tensors["turned"], torch.arange(6.0).reshape(2, 3).T)


def test_state_that_is_no_tensor_is_refused(tmp_path: Path) -> None:
    class Odd(nn.Linear):
        def get_extra_state(self) -> dict[str, int]:
            return {"count": 1}

        def set_extra_state(self, state: object) -> None: ...

    with pytest.raises(ValueError, match=r"Odd\.state_dict\(\) holds '_extra_state', a dict"):
        save(tmp_path, 1, learner=Odd(2, 2))


def test_the_newest_are_kept(tmp_path: Path) -> None:
    for step in (5, 9, 10, 100):  # by number, not by name
        save(tmp_path, step, keep=2)
    assert steps(tmp_path) == [100, 10]
    save(tmp_path, 101, keep=1)
    assert steps(tmp_path) == [101]


def test_a_write_that_breaks_off_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save(tmp_path, 1)
    with monkeypatch.context() as broken:
        broken.setattr(os, "rename", lambda *_: (_ for _ in ()).throw(OSError("no space left")))
        with pytest.raises(OSError, match="no space left"):
            save(tmp_path, 2)
    assert steps(tmp_path) == [1]
    newest = ckpt.newest_checkpoint(tmp_path)
    assert newest is not None
    assert newest.step == 1
    save(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-1", "step-3"]


def test_everything_is_on_disk_before_the_name_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[str] = []
    descriptors = {}
    real_open, real_fsync, real_rename = os.open, os.fsync, os.rename

    def note_open(path: str | Path, flags: int, *rest: int) -> int:
        handle = real_open(path, flags, *rest)
        descriptors[handle] = Path(path).name
        return handle

    monkeypatch.setattr(os, "open", note_open)
    monkeypatch.setattr(os, "fsync", lambda handle: (events.append(descriptors[handle]), real_fsync(handle)))
    monkeypatch.setattr(os, "rename", lambda a, b: (events.append("rename"), real_rename(a, b)))
    save(tmp_path / "checkpoints", 4)
    expected = ["model.safetensors", "training.pt", "manifest.json", ".tmp-step-4", "rename", "checkpoints"]
    assert events == expected


def truncate(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size - 8)


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)


DAMAGE = [
    ("model.safetensors", truncate, r"model\.safetensors has \d+ bytes instead of \d+"),
    ("training.pt", truncate, r"training\.pt has \d+ bytes instead of \d+"),
    ("model.safetensors", flip_a_bit, r"the content of model\.safetensors does not match its sha256"),
    ("training.pt", flip_a_bit, r"the content of training\.pt does not match its sha256"),
    ("training.pt", Path.unlink, r"training\.pt is missing"),
    ("manifest.json", truncate, r"its manifest\.json cannot be read"),
    ("manifest.json", Path.unlink, r"it has no manifest\.json"),
]


@pytest.mark.parametrize(("name", "damage", "reason"), DAMAGE)
def test_damage_is_named_and_the_one_before_is_used(
    name: str, damage: Callable[[Path], None], reason: str, tmp_path: Path
) -> None:
    save(tmp_path, 1)
    damage(save(tmp_path, 2).path / name)
    with pytest.warns(UserWarning, match=f"Skipped the damaged checkpoint .*step-2: {reason}"):
        newest = ckpt.newest_checkpoint(tmp_path)
    assert newest == ckpt.Checkpoint(tmp_path / "step-1", 1)


def test_a_file_that_cannot_be_read_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = save(tmp_path, 1)

    def fail(path: Path) -> str:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(ckpt, "_sha256", fail)
    assert ckpt.find_fault(checkpoint) == "it cannot be read ([Errno 5] Input/output error)"


@pytest.mark.parametrize(("key", "reason"), [("format", "its format is 9"), ("step", "is of step 9")])
def test_a_foreign_manifest_is_not_taken(key: str, reason: str, tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    manifest = json.loads((checkpoint.path / "manifest.json").read_text())
    (checkpoint.path / "manifest.json").write_text(json.dumps({**manifest, key: 9}))
    assert reason in (ckpt.find_fault(checkpoint) or "")


def test_when_none_is_whole_nothing_is_resumed(tmp_path: Path) -> None:
    for step in (1, 2):
        truncate(save(tmp_path, step).path / "training.pt")
    with (
        pytest.warns(UserWarning, match="Skipped"),
        pytest.raises(ValueError, match=r"None of the 2 checkpoint\(s\) in .* is whole"),
    ):
        ckpt.newest_checkpoint(tmp_path)


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert ckpt.newest_checkpoint(tmp_path / "checkpoints") is None


def test_a_damaged_one_ahead_goes_when_the_run_passes_below_it(tmp_path: Path) -> None:
    save(tmp_path, 1)
    truncate(save(tmp_path, 5).path / "training.pt")
    save(tmp_path, 3, keep=1)
    assert steps(tmp_path) == [3]


def test_pickled_code_is_not_run(tmp_path: Path) -> None:
    checkpoint = save(tmp_path, 1)
    torch.save({"optimizer": nn.Linear(1, 1)}, checkpoint.path / "training.pt")
    with pytest.raises(Exception, match="Weights only load failed"):
        checkpoint.training()

"""jepa inspect says what a checkpoint holds and what of it would load."""

import json
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.cli.conftest import Jepa
from tests.hub.hostile import RAN, Runs

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "official"


def inspected(jepa: Jepa, *argv: object) -> dict:
    outcome = jepa("inspect", *argv, "--json")
    assert outcome.code == 0, outcome.err
    return json.loads(outcome.out)


def test_an_official_file_part_by_part(jepa: Jepa) -> None:
    found = inspected(jepa, OFFICIAL / "ijepa.pth.tar", "--num-heads", 2)
    saved = torch.load(OFFICIAL / "ijepa.pth.tar", weights_only=True)
    assert found["family"] == "ijepa"
    assert found["format"] == "pickle"
    assert found["disk_bytes"] == (OFFICIAL / "ijepa.pth.tar").stat().st_size
    assert found["other"]["epoch"] == saved["epoch"]
    parts = {part["name"]: part for part in found["parts"]}
    assert set(parts) == {"encoder", "target_encoder", "predictor"}
    for name, part in parts.items():
        assert part["num_tensors"] == len(saved[name]) == sum(tensor["number"] for tensor in part["tensors"])
        assert part["num_values"] == sum(tensor.numel() for tensor in saved[name].values())
        assert part["num_bytes"] == 4 * part["num_values"]
        assert part["dtypes"] == {"float32": len(saved[name])}
        assert (
            sum(tensor["number"] * math.prod(tensor["shape"]) for tensor in part["tensors"])
            == part["num_values"]
        )
        assert part["refusal"] is None
    assert parts["encoder"]["network"]["kwargs"]["num_heads"] == 2
    assert parts["predictor"]["network"]["architecture"] == "Predictor"
    (dropped,) = parts["target_encoder"]["dropped"]
    assert "pos_embed" in dropped


def test_text_names_everything_and_a_row_is_a_line(jepa: Jepa) -> None:
    outcome = jepa("inspect", OFFICIAL / "ijepa.pth.tar", "--num-heads", 2, "--tensors")
    assert outcome.code == 0
    assert "\x1b" not in outcome.out
    for words in (
        "I-JEPA",
        "348.4 kB",
        "31.94 k",
        "ViT: ",
        "epoch 3",
        "blocks.{0-1}.attn.qkv.weight",
        "96 x 32",
    ):
        assert words in outcome.out
    assert "the same names, shapes and dtypes as encoder" in outcome.out
    assert not any(line.endswith(" ") for line in outcome.out.splitlines())


def test_what_would_not_load_says_why(jepa: Jepa) -> None:
    outcome = jepa("inspect", OFFICIAL / "ijepa.pth.tar")
    assert outcome.code == 0
    assert "encoder, target_encoder would not load: the number of heads" in outcome.out
    assert "--num-heads N" in outcome.out


def test_unchecked_nothing_is_tried(jepa: Jepa) -> None:
    found = inspected(jepa, OFFICIAL / "ijepa.pth.tar", "--no-check")
    assert all(part["refusal"] is None and part["network"] is None for part in found["parts"])


def test_nan_is_found(jepa: Jepa, tmp_path: Path) -> None:
    saved = torch.load(OFFICIAL / "ijepa.pth.tar", weights_only=True)
    saved["predictor"]["module.predictor_proj.bias"][3] = math.nan
    torch.save(saved, tmp_path / "x.pt")
    refusals = {
        part["name"]: part["refusal"]
        for part in inspected(jepa, tmp_path / "x.pt", "--num-heads", 2)["parts"]
    }
    assert refusals["encoder"] is None
    assert "NaN" in refusals["predictor"]


def test_a_file_of_no_family_is_listed_all_the_same(jepa: Jepa, tmp_path: Path) -> None:
    save_file(
        {"a.0.w": torch.ones(2), "a.2.w": torch.ones(2), "b": torch.ones(3).bool()},
        tmp_path / "x.safetensors",
    )
    found = inspected(jepa, tmp_path / "x.safetensors")
    assert found["family"] is None
    listed = [(tensor["name"], tensor["number"]) for part in found["parts"] for tensor in part["tensors"]]
    assert sorted(listed) == [("a.{0,2}.w", 2), ("b", 1)]
    assert "of no family" in jepa("inspect", tmp_path / "x.safetensors").out


def test_training_state_is_told_from_networks(jepa: Jepa, tmp_path: Path) -> None:
    saved = torch.load(OFFICIAL / "ijepa.pth.tar", weights_only=True)
    torch.save({**saved, "opt": {"state": {0: {"exp_avg": torch.zeros(5)}}}}, tmp_path / "x.pt")
    (opt,) = [p for p in inspected(jepa, tmp_path / "x.pt", "--num-heads", 2)["parts"] if p["name"] == "opt"]
    assert opt["num_values"] == 5
    assert opt["network"] is None


@pytest.mark.parametrize("inner", ["", "encoder"])
def test_our_own_folders(jepa: Jepa, finished: Path, inner: str) -> None:
    found = inspected(jepa, finished / inner)
    weights = load_file(finished / "encoder" / "model.safetensors")
    assert found["kind"] == ("encoder folder" if inner else "run")
    assert found["family"] == "torchjepa"
    (part,) = found["parts"]
    assert part["num_values"] == sum(tensor.numel() for tensor in weights.values())
    assert part["network"]["architecture"] == "ConvEncoder"


def test_a_run_without_an_encoder_shows_its_newest_checkpoint(
    jepa: Jepa, finished: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "run.json").write_text((finished / "run.json").read_text())
    outcome = jepa("inspect", folder)
    assert outcome.code == 2
    assert "without a checkpoint" in outcome.err
    (folder / "checkpoints").symlink_to(finished / "checkpoints")
    assert inspected(jepa, folder)["kind"] == "unfinished run"


def test_a_hostile_file_is_one_line_and_exit_code_2(jepa: Jepa, tmp_path: Path) -> None:
    torch.save({"w": Runs()}, tmp_path / "x.pt")
    outcome = jepa("inspect", tmp_path / "x.pt")
    assert outcome.code == 2
    assert outcome.out == ""
    assert len(outcome.err.splitlines()) == 1
    assert "posix.system" in outcome.err
    assert not Path(RAN).exists()


def test_what_is_not_there(jepa: Jepa) -> None:
    outcome = jepa("inspect", "nope.pt")
    assert outcome.code == 2
    assert "nope.pt" in outcome.err

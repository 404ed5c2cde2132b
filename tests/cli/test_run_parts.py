"""What a finished run keeps: the encoder that was judged, and the predictor beside it."""

from pathlib import Path

import torch
from safetensors.torch import load_file

import torchjepa
from tests.cli.conftest import Jepa
from tests.cli.tiny import DIGITS, IJEPA


def test_a_masked_run_gives_its_predictor_back(jepa: Jepa, empty_folder: Path) -> None:
    done = jepa("train", "ijepa-tiny", *IJEPA, "--no-judge", "--name", "x")
    assert done.code == 0, done.err
    (checkpoint,) = sorted((empty_folder / "runs" / "x" / "checkpoints").glob("step-*/model.safetensors"))[
        -1:
    ]
    stored = load_file(checkpoint)
    loaded = torchjepa.load(empty_folder / "runs" / "x", "all")
    assert set(loaded.parts) == {"target_encoder", "predictor"}
    for part, network in loaded.parts.items():
        for name, tensor in network.state_dict().items():
            assert torch.equal(tensor, stored[f"{part}.{name}"]), name
    online = torchjepa.load(empty_folder / "runs" / "x", "encoder")
    assert "the online encoder" in str(online.report)
    for name, tensor in online.model.state_dict().items():
        assert torch.equal(tensor, stored[f"encoder.{name}"]), name


def test_a_run_without_predictor_keeps_the_encoder_alone(jepa: Jepa, empty_folder: Path) -> None:
    assert jepa("train", "digits", *DIGITS, "--no-judge", "--name", "x").code == 0
    assert set(torchjepa.load(empty_folder / "runs" / "x", "all").parts) == {"target_encoder"}

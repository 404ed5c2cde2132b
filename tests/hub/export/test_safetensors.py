"""Encoder folders as an export: what is loaded is what went in."""

import pytest
import torch

import torchjepa
from tests.hub.small import action_source, image_source
from torchjepa.data import Preprocessing
from torchjepa.hub import LoadedEncoder, load_encoder
from torchjepa.hub.export import export


@torch.no_grad()
def test_an_encoder_folder_loads_bit_for_bit(tmp_path):
    source = image_source()
    done = export(source, tmp_path / "e", format="safetensors")
    assert done.deviations == {"tokens": 0.0, "features": 0.0}
    x = torch.randn(2, 3, 16, 16)
    loaded = torchjepa.load(done.path)
    assert torch.equal(loaded.model(x), source.model(x))
    assert set(loaded.parts) == {"target_encoder"}
    assert (done.path / "README.md").is_file()


@pytest.mark.parametrize(("source", "part"), [(image_source(), "predictor"), (action_source(), "rollout")])
def test_a_predictor_comes_with_its_encoder(tmp_path, source, part):
    done = export(source, tmp_path / "p", format="safetensors", part=part)
    assert done.deviations == {"prediction": 0.0}
    state = load_encoder(done.path, parts=["predictor"]).parts["predictor"].state_dict()
    kept = source.parts["predictor"].state_dict()
    assert all(torch.equal(value, state[name]) for name, value in kept.items())


def test_half_takes_half_the_bytes(tmp_path):
    full, half = (
        export(image_source(), tmp_path / precision, format="safetensors", precision=precision)
        for precision in ("full", "half")
    )
    assert 0 < half.deviations["tokens"] < 5e-3
    sizes = [(done.path / "model.safetensors").stat().st_size for done in (full, half)]
    assert sizes[1] < 0.6 * sizes[0]


def test_a_network_of_ones_own_is_kept_as_custom(tmp_path):
    class Own(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 4)

        def forward(self, x):
            return self.layer(x.flatten(2).transpose(1, 2))

    source = LoadedEncoder(Own().eval(), "mean", Preprocessing(image_size=4), {})
    done = export(source, tmp_path / "own", format="safetensors")
    assert load_encoder(done.path, Own()).config["architecture"] == "custom"

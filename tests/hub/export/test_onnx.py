"""ONNX files, opened by onnxruntime in the test itself, on inputs that the export has not seen."""

import json
import sys

import jaxtyping
import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

import torchjepa
from tests.hub.small import OFFICIAL, image_source
from torchjepa.data import Preprocessing
from torchjepa.hub import LoadedEncoder
from torchjepa.hub.export import export
from torchjepa.nn import ConvEncoder


def run(path, *inputs):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [entry.name for entry in session.get_inputs()]
    found = session.run(None, {name: value.numpy() for name, value in zip(names, inputs, strict=True)})
    return [torch.from_numpy(value) for value in found]


def apart(found, wanted):
    return float((found - wanted).abs().max() / wanted.abs().max())


@torch.no_grad()
def test_an_encoder_gives_tokens_and_pooled_features_for_any_batch(tmp_path):
    source = image_source("mean_max")
    done = export(source, tmp_path / "encoder.onnx", format="onnx", dynamic=True)
    assert done.signature == "pixels [batch, 3, 16, 16] -> tokens [batch, 16, 24], features [batch, 48]"
    assert list(tmp_path.iterdir()) == [done.path]
    assert done.num_bytes == done.path.stat().st_size
    for batch in (1, 5):
        x = torch.randn(batch, 3, 16, 16)
        tokens, features = run(done.path, x)
        wanted = source.model(x)
        assert apart(tokens, wanted) < 1e-5
        assert apart(features, torch.cat([wanted.mean(1), wanted.amax(1)], 1)) < 1e-5
    told = onnxruntime.InferenceSession(done.path).get_modelmeta().custom_metadata_map
    assert Preprocessing(**json.loads(told["torchjepa.preprocessing"])) == source.preprocessing
    assert (told["torchjepa.part"], told["torchjepa.pool"]) == ("encoder", "mean_max")


@pytest.fixture
def untyped():
    """Without the checks of the tests: an open length is no int to them."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("untyped")
@torch.no_grad()
def test_a_predictor_takes_any_number_of_tokens(tmp_path):
    source = image_source()
    done = export(source, tmp_path / "p.onnx", format="onnx", part="predictor", dynamic=True)
    context, seen = torch.randn(2, 5, 24), torch.tensor([[0, 3, 4, 9, 15], [1, 2, 3, 4, 5]])
    asked = torch.tensor([[[6, 7, 8]], [[10, 11, 14]]])
    (found,) = run(done.path, context, seen, asked)
    grid = source.model.grid((16, 16))
    assert apart(found, source.parts["predictor"](context, seen, asked, grid)) < 1e-5


def test_a_rollout_of_the_released_predictor_gives_the_official_next_frame(tmp_path):
    loaded = torchjepa.load(f"{OFFICIAL}/vjepa2_ac.pt", "all", num_heads=2)
    encoder = torchjepa.load(f"{OFFICIAL}/vjepa2.pt", num_heads=2).model
    source = LoadedEncoder(
        encoder,
        "mean",
        Preprocessing(image_size=24, num_frames=4),
        {},
        {"predictor": loaded.parts["predictor"]},
    )
    done = export(source, tmp_path / "step.onnx", format="onnx", part="rollout", dynamic=True)
    official = load_file(f"{OFFICIAL}/vjepa2_io.safetensors")
    tokens, actions, states = (official[f"ac_{name}"] for name in ("tokens", "actions", "states"))
    (found,) = run(done.path, tokens[:, :9], actions[:, :1], states[:, :1])
    wanted = F.layer_norm(official["ac_out"][:, :9], (32,))  # causal: the first frame knows no other
    assert apart(found, wanted) < 1e-5


@torch.no_grad()
def test_half_and_int8_are_smaller_and_near(tmp_path):
    source = image_source()
    x = torch.randn(1, 3, 16, 16)
    wanted, sizes = source.model(x), []
    for precision, near in (("half", 5e-3), ("int8", 5e-2)):
        done = export(source, tmp_path / precision, format="onnx", precision=precision)
        tokens, _ = run(done.path, x)
        assert 0 < apart(tokens, wanted) < near
        sizes.append(weight_bytes(done.path))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "int8"]
    matrices = 4 * sum(p.numel() for p in source.model.parameters() if p.ndim == 2)
    assert sizes[0] < 0.6 * matrices + 4096
    assert sizes[1] < 0.4 * matrices + 8192


def weight_bytes(path):
    import onnx

    return sum(len(each.raw_data) for each in onnx.load(path).graph.initializer)


@pytest.mark.slow
@torch.no_grad()
def test_a_convolutional_encoder_exports_too(tmp_path):
    encoder = ConvEncoder(in_channels=3, widths=(4, 8), depths=(1, 1), strides=(2, 2)).eval()
    done = export(
        LoadedEncoder(encoder, "mean", Preprocessing(image_size=16), {}),
        tmp_path / "conv.onnx",
        format="onnx",
    )
    x = torch.randn(1, 3, 16, 16)
    assert apart(run(done.path, x)[0], encoder(x)) < 1e-5


@pytest.mark.slow
def test_weights_beyond_a_protobuf_lie_beside_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr("torchjepa.hub.export.onnx._LARGEST", 1000)
    source = image_source()
    done = export(source, tmp_path / "e.onnx", format="onnx")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.onnx", "e.onnx.data"]
    assert done.num_bytes == sum(path.stat().st_size for path in tmp_path.iterdir())
    x = torch.randn(1, 3, 16, 16)
    assert np.isfinite(run(done.path, x)[0].numpy()).all()


@pytest.mark.parametrize("library", ["onnx", "onnxruntime", "onnxscript"])
def test_a_missing_library_fails_with_the_pip_line(tmp_path, monkeypatch, library):
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{library}.*pip install 'torchjepa\[onnx\]'"):
        export(image_source(), tmp_path / "x.onnx", format="onnx")
    assert not list(tmp_path.iterdir())

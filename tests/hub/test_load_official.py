"""Official checkpoints give the official outputs."""

from __future__ import annotations

import pytest
import torch

import torchjepa
from tests.hub.checkpoints import FILES, OFFICIAL, close, outputs
from torchjepa.energy import SmoothL1Energy
from torchjepa.hub import load
from torchjepa.types import Grid


def opened(family, which="all"):
    return load(OFFICIAL / FILES[family], which, num_heads=2)


def layer_norm(tokens):
    return torch.nn.functional.layer_norm(tokens, tokens.shape[-1:])


def gathered(tokens, ids):
    return torch.stack([tokens[row, ids[row]] for row in range(len(tokens))])


@pytest.fixture(autouse=True)
def _without_gradients():
    with torch.no_grad():
        yield


def test_ijepa():
    io, parts = outputs("ijepa"), opened("ijepa").parts
    close(parts["encoder"](io["images"]), io["encoder_full"])
    close(parts["target_encoder"](io["images"]), io["target_encoder_full"])
    context = parts["encoder"](io["images"], io["context"])
    close(context, io["encoder_context"])
    ids = torch.stack([io["target_0"], io["target_1"]], dim=1)
    prediction = parts["predictor"](context, io["context"], ids, Grid(h=3, w=3))
    close(prediction.transpose(0, 1).flatten(0, 1), io["predictor_out"])
    wanted = layer_norm(parts["target_encoder"](io["images"]))
    targets = torch.cat([gathered(wanted, io["target_0"]), gathered(wanted, io["target_1"])])
    close(targets, io["targets"])
    close(SmoothL1Energy()(prediction.transpose(0, 1).flatten(0, 1), targets), io["loss"])


def test_ijepas_gradients_and_average():
    io, parts = outputs("ijepa"), opened("ijepa").parts
    encoder, predictor = parts["encoder"], parts["predictor"]
    with torch.enable_grad():
        ids = torch.stack([io["target_0"], io["target_1"]], dim=1)
        context = encoder(io["images"], io["context"])
        prediction = predictor(context, io["context"], ids, Grid(h=3, w=3)).transpose(0, 1).flatten(0, 1)
        torch.nn.functional.smooth_l1_loss(prediction, io["targets"]).backward()
    close(encoder.patch_embed.weight.grad, io["grad_patch_embed"].flatten(1))
    close(predictor.mask_token.grad, io["grad_mask_token"])
    online, target = (parts[name].patch_embed.weight for name in ("encoder", "target_encoder"))
    close(0.996 * target + 0.004 * online, io["ema_patch_embed"].flatten(1))


def test_vjepa():
    io, parts = outputs("jepa"), opened("vjepa").parts
    close(parts["encoder"](io["clips"]), io["encoder_full"])
    close(parts["target_encoder"](io["clips"]), io["target_encoder_full"])
    context = parts["encoder"](io["clips"], io["context"])
    close(context, io["encoder_context"])
    for index in (0, 1):
        predicted = parts["predictor"](
            context, io["context"], io["target"][:, None], Grid(t=2, h=2, w=2), index
        )
        close(predicted[:, 0], io[f"predictor_out_mask{index}"])
    close(gathered(layer_norm(parts["target_encoder"](io["clips"])), io["target"]), io["targets"])
    close((io["predictor_out_mask0"] - io["targets"]).abs().mean(), io["loss_l1"])


def test_vjepa2():
    io, parts = outputs("vjepa2"), opened("vjepa2").parts
    encoder = parts["encoder"]
    tokens, layers = encoder(io["clips"], return_intermediates=[0, 1])
    close(tokens, io["encoder_full"])
    for layer in (0, 1):
        close(encoder.norm(layers[f"block_{layer}"]), io[f"encoder_layer_{layer}"])
    close(parts["target_encoder"](io["clips"]), io["target_encoder_full"])
    context = encoder(io["clips"], io["context"])
    close(context, io["encoder_context"])
    for index in (0, 2):
        predicted = parts["predictor"](
            context, io["context"], io["target"][:, None], Grid(t=2, h=3, w=3), index
        )
        close(predicted[:, 0], io[f"predictor_out_mask{index}"])


def test_vjepa2_ac():
    io, predictor = outputs("vjepa2"), opened("vjepa2_ac", "predictor").model
    inputs = io["ac_tokens"], io["ac_actions"], io["ac_states"]
    close(predictor(*inputs, Grid(t=4, h=3, w=3)), io["ac_out"])
    short = inputs[0][:, :18], inputs[1][:, :2], inputs[2][:, :2]
    close(predictor(*short, Grid(t=2, h=3, w=3)), io["ac_out_short"])
    assert opened("vjepa2_ac", "encoder").model.config["patch_size"] == [2, 8, 8]


def test_the_probe():
    io = outputs("vjepa2")
    close(opened("vjepa2_probe", "classifier").model(io["encoder_full"]), io["probe_out"])
    close(opened("vjepa2_probe", "classifiers.0").model(io["encoder_full"]), io["probe_out"])


@pytest.mark.parametrize("family", ["ijepa", "vjepa", "vjepa2"])
def test_the_target_encoder_is_the_default_and_said(family, caplog):
    with caplog.at_level("INFO", logger="torchjepa"):
        loaded = torchjepa.load(OFFICIAL / FILES[family], num_heads=2)
    assert list(loaded.parts) == ["target_encoder"]
    assert loaded.parts["target_encoder"] is loaded.model
    assert f"target_encoder of {family}" in caplog.text
    name = "jepa" if family == "vjepa" else family
    io = outputs(name)
    inputs = io["images"] if family == "ijepa" else io["clips"]
    close(loaded.model(inputs), io["target_encoder_full"])
    assert (loaded.model(inputs) - io["encoder_full"]).abs().max() > 1e-3


def test_what_is_loaded_is_ready_to_use_and_to_train():
    loaded = opened("ijepa")
    assert not any(part.training for part in loaded.parts.values())
    for part in loaded.parts.values():
        for parameter in part.parameters():
            assert parameter.requires_grad
            assert not parameter.is_meta
            parameter.add_(1.0)  # a mapped file is written to in memory alone
    again = opened("ijepa")
    assert not torch.equal(loaded.model.norm.weight, again.model.norm.weight)


def test_the_size_of_the_inputs_comes_from_the_table():
    assert opened("ijepa").preprocessing.image_size == 24
    video = opened("vjepa").preprocessing
    assert (video.image_size, video.num_frames) == (16, 4)
    rotary = opened("vjepa2")
    assert rotary.preprocessing.image_size == 256
    assert "does not say its input size" in str(rotary.report)


@pytest.mark.parametrize(
    ("family", "size"), [("ijepa", (40, 16)), ("vjepa", (8, 24, 40)), ("vjepa2", (2, 8, 32))]
)
def test_other_sizes_and_frame_counts(family, size):
    model = opened(family).model
    tokens = model(torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(0)))
    assert tokens.shape[1] == model.grid(size).num_tokens
    assert tokens.isfinite().all()


def test_a_size_that_the_patch_does_not_divide_names_both_neighbours():
    with pytest.raises(ValueError, match=r"24.*32"):
        opened("ijepa").model(torch.zeros(1, 3, 24, 30))


def test_positions_of_another_size_are_the_trained_ones_interpolated():
    """The middle of a table of twice the size lies between its neighbours, where a longer table counts on."""
    positions = opened("ijepa").model.positions
    weight = torch.zeros(1)
    trained, larger = positions(Grid(h=3, w=3), weight), positions(Grid(h=6, w=6), weight)
    wanted = torch.nn.functional.interpolate(
        trained.T.view(1, -1, 3, 3).double(), size=(6, 6), mode="bicubic", align_corners=False
    )
    close(larger, wanted[0].flatten(1).T.float(), atol=1e-6)

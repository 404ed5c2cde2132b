"""Every output stored with the official checkpoints, to 1e-5."""

import pytest
import torch
import torch.nn.functional as F

from tests.nn.foreign import close, outputs, weights
from torchjepa.nn import (
    ActionPredictor,
    AttentiveClassifier,
    Predictor,
    RotaryPositions,
    ViT,
    sincos_positions,
)
from torchjepa.types import Grid

RELEASED = RotaryPositions(pairing="released")
IMAGES, VIDEOS, CLIPS = Grid(h=3, w=3), Grid(t=2, h=2, w=2), Grid(t=2, h=3, w=3)
ENCODERS = {
    "ijepa": {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "positions": "wh"},
    "vjepa": {"patch_size": (2, 8, 8), "embed_dim": 48, "depth": 2, "num_heads": 2, "positions": "thw"},
    "vjepa2": {"patch_size": (2, 8, 8), "embed_dim": 32, "depth": 2, "num_heads": 2, "positions": RELEASED},
}
PREDICTORS = {
    "ijepa": {"encoder_dim": 32, "embed_dim": 24, "depth": 2, "num_heads": 2},
    "vjepa": {"encoder_dim": 48, "embed_dim": 24, "depth": 2, "num_heads": 2, "positions": "thw"},
    "vjepa2": {"encoder_dim": 32, "embed_dim": 32, "depth": 2, "num_heads": 2, "positions": RELEASED},
}
FILES = {"ijepa": "ijepa.pth.tar", "vjepa": "vjepa.pth.tar", "vjepa2": "vjepa2.pt"}
STORED = {"ijepa": ("ijepa", "images"), "vjepa": ("jepa", "clips"), "vjepa2": ("vjepa2", "clips")}


def loaded(kind, file, part, **sizes):
    # Built without memory and given the file's tensors as they are, which is how large files are opened.
    with torch.device("meta"):
        network = kind(**sizes)
    network.load_state_dict(weights(file, part)[0], assign=True)
    return network


def encoder(family, part="encoder"):
    return loaded(ViT, FILES[family], part, **ENCODERS[family])


def predictor(family, num_mask_tokens=1):
    sizes = PREDICTORS[family] | {"num_mask_tokens": num_mask_tokens}
    return loaded(Predictor, FILES[family], "predictor", **sizes)


def loss_inputs(family):
    """Context tokens and layer-normalised targets of the whole input."""
    name, key = STORED[family]
    io = outputs(name)
    targets = encoder(family, "target_encoder")(io[key])
    return io, encoder(family)(io[key], io["context"]), F.layer_norm(targets, targets.shape[-1:])


def gathered(tokens, ids):
    return torch.stack([sample[row] for sample, row in zip(tokens, ids)])


@pytest.mark.parametrize("family", FILES)
def test_encoders(family):
    name, key = STORED[family]
    io = outputs(name)
    close(encoder(family)(io[key]), io["encoder_full"])
    close(encoder(family)(io[key], io["context"]), io["encoder_context"])
    close(encoder(family, "target_encoder")(io[key]), io["target_encoder_full"])


@pytest.mark.parametrize(
    ("family", "dim", "grid", "layout"), [("ijepa", 32, IMAGES, "wh"), ("vjepa", 48, VIDEOS, "thw")]
)
def test_the_stored_position_tables_are_ours(family, dim, grid, layout):
    for part, width in (("encoder", dim), ("predictor", 24)):
        table = weights(FILES[family], part)[1]
        close(sincos_positions(grid, width, layout=layout).float(), table[0])


def test_ijepa_predictions_loss_and_gradients():
    io, _, targets = loss_inputs("ijepa")
    ids = torch.stack([io["target_0"], io["target_1"]], dim=1)
    vit, network = encoder("ijepa"), predictor("ijepa")
    out = network(vit(io["images"], io["context"]), io["context"], ids, IMAGES)
    close(out.transpose(0, 1).flatten(0, 1), io["predictor_out"])
    wanted = torch.cat([gathered(targets, ids[:, block]) for block in range(2)])
    close(wanted, io["targets"])
    loss = F.smooth_l1_loss(out.transpose(0, 1).flatten(0, 1), wanted.detach())
    close(loss, io["loss"])
    loss.backward()
    close(vit.patch_embed.weight.grad, io["grad_patch_embed"].flatten(1))
    close(network.mask_token.grad, io["grad_mask_token"])


def test_vjepa_predictions_and_loss():
    io, context, targets = loss_inputs("vjepa")
    ids = io["target"][:, None]
    out = [predictor("vjepa", 2)(context, io["context"], ids, VIDEOS, index)[:, 0] for index in range(2)]
    wanted = gathered(targets, io["target"])
    close(out[0], io["predictor_out_mask0"])
    close(out[1], io["predictor_out_mask1"])
    close(wanted, io["targets"])
    close((out[0] - wanted).abs().mean(), io["loss_l1"])


def test_vjepa2_layers_and_predictions():
    io = outputs("vjepa2")
    vit, network = encoder("vjepa2"), predictor("vjepa2", 3)
    stream = vit(io["clips"], return_intermediates=[0, 1])[1]
    for layer in range(2):
        close(vit.norm(stream[f"block_{layer}"]), io[f"encoder_layer_{layer}"])
    context = vit(io["clips"], io["context"])
    for index in (0, 2):
        out = network(context, io["context"], io["target"][:, None], CLIPS, mask_index=index)
        close(out[:, 0], io[f"predictor_out_mask{index}"])


def test_vjepa2_needs_the_released_pairing():
    io = outputs("vjepa2")
    for family, build in (("vjepa2", encoder), ("vjepa2", lambda family: predictor(family, 3))):
        ours = build(family)
        other = type(ours)(**(ours.config | {"positions": "rope"}))
        other.load_state_dict(ours.state_dict())
        given = (io["clips"],)
        if isinstance(ours, Predictor):
            given = io["encoder_context"], io["context"], io["target"][:, None], CLIPS
        assert (other(*given) - ours(*given)).abs().max() > 1e-3


def test_vjepa2_ac_any_number_of_frames():
    io = outputs("vjepa2")
    network = loaded(ActionPredictor, "vjepa2_ac.pt", "predictor", **PREDICTORS["vjepa2"])
    tokens, actions, states = io["ac_tokens"], io["ac_actions"], io["ac_states"]
    close(network(tokens, actions, states, Grid(t=4, h=3, w=3)), io["ac_out"])
    short = network(tokens[:, :18], actions[:, :2], states[:, :2], CLIPS)
    close(short, io["ac_out_short"])


def test_vjepa2_probe():
    io = outputs("vjepa2")
    sizes = {"embed_dim": 32, "num_classes": 5, "num_heads": 2, "depth": 2}
    probe = loaded(AttentiveClassifier, "vjepa2_probe.pt", "classifiers", **sizes)
    close(probe(io["encoder_full"]), io["probe_out"])

"""Our I-JEPA with the released code's weights gives the released code's numbers."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from torchjepa.ema import EMA
from torchjepa.models import IJEPA
from torchjepa.models.masked import take_blocks
from torchjepa.nn import Predictor, ViT, sincos_positions
from torchjepa.types import Batch, Grid, Masks

# Released prefix -> ours; the positions are computed here and stored there.
ENCODER_KEYS = {"patch_embed.proj.": "patch_embed.", "blocks.": "blocks.", "norm.": "norm."}
PREDICTOR_KEYS = {
    "mask_token": "mask_token",
    "predictor_embed.": "embed.",
    "predictor_blocks.": "blocks.",
    "predictor_norm.": "norm.",
    "predictor_proj.": "proj.",
}
POSITIONS = {"encoder.pos_embed": 32, "target_encoder.pos_embed": 32, "predictor.predictor_pos_embed": 24}


class FixedMask:
    """The masks of the fixture, whatever is asked."""

    def __init__(self, masks):
        self.masks = masks

    def __call__(self, grid, batch_size, generator):
        return self.masks


def translate(released, prefix, keys):
    state = {}
    for name, value in released.items():
        for theirs, ours in keys.items():
            if name.startswith(prefix + theirs):
                flat = value.flatten(1) if "patch_embed.proj.weight" in name else value
                state[name.replace(prefix + theirs, ours, 1)] = flat
    return state


@pytest.fixture(scope="module")
def released():
    return load_file(Path(__file__).parents[1] / "fixtures" / "ijepa_official.safetensors")


@pytest.fixture
def model(released):
    masks = Masks(
        released["io.context"], torch.stack([released["io.target_0"], released["io.target_1"]], dim=1)
    )
    encoder = ViT(patch_size=8, embed_dim=32, depth=2, num_heads=2, image_size=24)
    predictor = Predictor(encoder_dim=32, embed_dim=24, depth=2, num_heads=2)
    model = IJEPA(encoder, predictor, mask=FixedMask(masks), ema=EMA(0.996))
    model.encoder.load_state_dict(translate(released, "encoder.", ENCODER_KEYS))
    model.target_encoder.load_state_dict(translate(released, "target_encoder.", ENCODER_KEYS))
    model.predictor.load_state_dict(translate(released, "predictor.", PREDICTOR_KEYS))
    return model


def close(ours, theirs):
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def blocks_first(tokens):
    return tokens.transpose(0, 1).flatten(0, 1)


def batch(released):
    return Batch((released["io.images"],), torch.arange(3), torch.full((3,), -1))


@pytest.mark.parametrize(("name", "dim"), POSITIONS.items())
def test_positions(released, name, dim):
    close(sincos_positions(Grid(h=3, w=3), dim).float(), released[name][0])


def test_full_and_masked_encoder(released, model):
    close(model.encoder(released["io.images"]), released["io.encoder_full"])
    close(model.encoder(released["io.images"], released["io.context"]), released["io.encoder_context"])
    close(model.encode(released["io.images"]), released["io.target_encoder_full"])


def test_predictor_and_targets(released, model):
    masks = model.mask.masks
    context = model.encoder(released["io.images"], masks.context)
    prediction = model.predictor(context, masks.context, masks.targets, Grid(h=3, w=3))
    close(blocks_first(prediction), released["io.predictor_out"])
    wanted = model.targets(released["io.images"])[1]
    close(blocks_first(take_blocks(wanted, masks.targets)), released["io.targets"])


def test_loss_and_gradients(released, model):
    loss = model.loss(batch(released), 0)
    loss.total.backward()
    close(loss.total.detach(), released["io.loss"])
    close(model.encoder.patch_embed.weight.grad, released["io.grad_patch_embed"].flatten(1))
    close(model.predictor.mask_token.grad, released["io.grad_mask_token"])


def test_gradients_agree_relative_to_their_size(released, model):
    model.loss(batch(released), 0).total.backward()
    theirs = released["io.grad_patch_embed"].flatten(1)
    error = (model.encoder.patch_embed.weight.grad - theirs).norm() / theirs.norm()
    assert error < 1e-4


def test_ema_update(released, model):
    model.after_step(0)
    close(model.target_encoder.patch_embed.weight, released["io.ema_patch_embed"].flatten(1))

"""The convolutional encoder's call."""

import json

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from torchjepa.nn import ConvEncoder
from torchjepa.types import Encoder, Grid


def small_encoder(**changes):
    return ConvEncoder(**({"widths": (4, 6, 8)} | changes))


def test_tokens_are_the_places_of_the_last_map():
    encoder = small_encoder().eval()
    x = torch.randn(2, 3, 16, 24)
    assert isinstance(encoder, Encoder)
    assert encoder.grid((16, 24)) == Grid(h=4, w=6)
    features = encoder.stages(x)
    tokens = encoder(x)
    assert tokens.shape == (2, 24, 8)
    for row in range(4):
        for column in range(6):
            torch.testing.assert_close(tokens[:, row * 6 + column], features[:, :, row, column])


@pytest.mark.parametrize("size", [(1, 1), (5, 7), (17, 31), (32, 32)])
@pytest.mark.parametrize("strides", [None, (2, 2, 2), (4, 1, 3)])
def test_grid_is_that_of_the_output_for_any_size(size, strides):
    encoder = small_encoder(strides=strides).eval()
    assert encoder(torch.randn(1, 3, *size)).shape[1] == encoder.grid(size).num_tokens


def test_residual_blocks_start_as_the_identity():
    with_blocks = small_encoder(depths=(2, 1, 3)).eval()
    without = small_encoder(depths=(0, 0, 0)).eval()
    for stage, plain in zip(with_blocks.stages, without.stages):
        plain.load_state_dict({name: value for name, value in stage.state_dict().items() if name[0] in "01"})
    x = torch.randn(2, 3, 12, 12)
    torch.testing.assert_close(with_blocks(x), without(x))


def test_residual_block_equals_the_formula():
    block = small_encoder(depths=(0, 0, 1)).stages[2][3]
    nn.init.constant_(block.norm2.weight, 0.7)
    x = torch.randn(2, 8, 5, 5)
    y = F.conv2d(x, block.conv1.weight, padding=1)
    y = F.conv2d(F.batch_norm(y, None, None, training=True).relu(), block.conv2.weight, padding=1)
    torch.testing.assert_close(block(x), (x + 0.7 * F.batch_norm(y, None, None, training=True)).relu())


def test_intermediates_are_the_maps_of_each_stage():
    encoder = small_encoder().eval()
    x = torch.randn(2, 3, 8, 8)
    tokens, named = encoder(x, return_intermediates=[0, -1])
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        "stage_0": (2, 64, 4),
        "stage_2": (2, 4, 8),
    }
    torch.testing.assert_close(named["stage_2"], tokens)
    with pytest.raises(ValueError, match="no -4 among the 3 stages; choose 0 to 2"):
        encoder(x, return_intermediates=[-4])


def test_config_survives_json_and_builds_the_network_again():
    encoder = small_encoder(depths=(1, 0, 2), strides=(2, 2, 1), in_channels=1).eval()
    again = ConvEncoder(**json.loads(json.dumps(encoder.config))).eval()
    again.load_state_dict(encoder.state_dict())
    x = torch.randn(1, 1, 16, 16)
    assert torch.equal(again(x), encoder(x))


def test_weights_are_a_function_of_the_seed():
    first, second, other = (small_encoder(seed=seed).state_dict() for seed in (3, 3, 4))
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stages.0.0.weight"], other["stages.0.0.weight"])


def test_trains_in_bfloat16():
    encoder = small_encoder()
    with torch.autocast("cpu", torch.bfloat16):
        tokens = encoder(torch.randn(4, 3, 16, 16))
    tokens.float().square().mean().backward()
    assert tokens.dtype == torch.bfloat16
    assert all(p.grad.isfinite().all() for p in encoder.parameters())


def test_ids_are_refused():
    with pytest.raises(ValueError, match="hidden patches would leak into the visible ones; use ViT"):
        small_encoder()(torch.randn(1, 3, 8, 8), torch.zeros(1, 2, dtype=torch.int64))


def test_other_than_images():
    with pytest.raises(ValueError, match=r"must be images \[b, c, H, W\], got spatial axes \(8,\); use ViT"):
        small_encoder()(torch.randn(1, 3, 8))


def test_plans_of_different_lengths():
    with pytest.raises(ValueError, match=r"one entry for each stage, got \(4, 6, 8\), \(1,\)"):
        small_encoder(depths=(1,))
    with pytest.raises(ValueError, match="one entry for each stage"):
        small_encoder(widths=())

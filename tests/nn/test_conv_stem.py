"""The ViT with a convolutional stem: the ViT's call, and nothing hidden is ever seen."""

import json
import subprocess
import sys

import pytest
import torch
from torch import nn

from torchjepa.nn import ConvStemViT, FanInStd, sincos_positions
from torchjepa.types import Encoder, Grid


def small(**changes):
    sizes = {"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "stem_width": 8}
    return ConvStemViT(**(sizes | changes))


def slow_stem(stem, image):
    """Output by output in float64: every convolution a sum over its window, zero outside the image."""
    features = image.double()
    for layer in stem:
        if isinstance(layer, nn.GELU):
            features = features * 0.5 * (1 + torch.erf(features / 2**0.5))
            continue
        height, width = features.shape[1:]
        out = torch.zeros(layer.out_channels, height // 2, width // 2, dtype=torch.float64)
        for row in range(height // 2):
            for column in range(width // 2):
                total = layer.bias.double().clone()
                for i in range(3):
                    for j in range(3):
                        y, x = 2 * row + i - 1, 2 * column + j - 1
                        if 0 <= y < height and 0 <= x < width:
                            total += layer.weight[:, :, i, j].double() @ features[:, y, x]
                out[:, row, column] = total
        features = out
    return features.flatten(1).T


@torch.no_grad()
@pytest.mark.parametrize("positions", ["wh", "none"])
def test_depth_zero_is_the_stem_plus_positions_normalised(positions):
    model = small(depth=0, positions=positions)
    image, ids = torch.randn(3, 8, 12), [4, 1, 0]
    seen = torch.zeros(8, 12)
    for row, column in ((4, 4), (0, 4), (0, 0)):  # patches 4, 1, 0 of the 2 x 3 grid
        seen[row : row + 4, column : column + 4] = 1
    table = sincos_positions(Grid(h=2, w=3), 16) if positions == "wh" else torch.zeros(6, 16)

    def expected(picture):
        tokens = slow_stem(model.stem, picture) + table
        return nn.functional.layer_norm(tokens, (16,), eps=1e-6).float()

    torch.testing.assert_close(model(image[None])[0], expected(image), atol=1e-5, rtol=1e-4)
    masked = model(image[None], torch.tensor([ids]))[0]
    torch.testing.assert_close(masked, expected(image * seen)[ids], atol=1e-5, rtol=1e-4)


def test_hidden_patches_are_never_seen():
    model = small()
    x = torch.randn(2, 3, 8, 12)
    ids = torch.tensor([[0, 4], [5, 2]])
    hidden = torch.ones(2, 1, 2, 1, 3, 1)
    for sample, row in enumerate(ids):
        for each in row.tolist():
            hidden[sample, 0, each // 3, 0, each % 3] = 0
    hidden = hidden.expand(-1, -1, -1, 4, -1, 4).reshape(2, 1, 8, 12).bool()
    changed = x.masked_fill(hidden, torch.nan).requires_grad_()
    tokens = model(changed, ids)
    assert torch.equal(tokens, model(x, ids))
    (gradient,) = torch.autograd.grad(tokens.square().sum() + tokens[..., 0].sum(), changed)
    assert not gradient.masked_select(hidden).any()
    assert gradient.masked_select(~hidden).abs().gt(0).float().mean() > 0.9


def test_a_token_sees_a_visible_neighbour_through_the_stem():
    model = small(depth=0)
    x = torch.randn(1, 3, 8, 8)
    changed = x.clone()
    changed[..., :4, 3] += 1.0  # the last column of patch 0, beside patch 1
    alone, both = torch.tensor([[1]]), torch.tensor([[1, 0]])
    assert torch.equal(model(x, alone), model(changed, alone))
    assert not torch.equal(model(x, both)[:, 0], model(changed, both)[:, 0])


def test_all_tokens_visible_is_the_whole_image():
    model, x = small(), torch.randn(2, 3, 8, 12)
    order = torch.randperm(6)
    tokens = model(x, order.expand(2, -1))
    torch.testing.assert_close(tokens, model(x)[:, order], atol=1e-5, rtol=1e-5)


def test_without_positions_and_blocks_a_moved_picture_moves_its_tokens():
    model = small(positions="none", depth=0)
    picture = torch.zeros(1, 3, 16, 16)
    picture[..., 5:8, 5:8] = torch.randn(3, 3, 3)
    tokens = model(picture)[0].view(4, 4, 16)
    moved = model(picture.roll(4, dims=3))[0].view(4, 4, 16)
    torch.testing.assert_close(moved[:, 2], tokens[:, 1])


@pytest.mark.parametrize("size", [(8, 8), (16, 8), (4, 24)])
def test_any_size_that_the_patch_divides(size):
    model = small()
    assert isinstance(model, Encoder)
    grid = model.grid(size)
    assert grid == Grid(h=size[0] // 4, w=size[1] // 4)
    assert model(torch.randn(2, 3, *size)).shape == (2, grid.num_tokens, 16)


def test_widths_double_up_to_the_embedding():
    def widths(**changes):
        return [layer.out_channels for layer in small(**changes).stem if isinstance(layer, nn.Conv2d)]

    assert widths(patch_size=8, embed_dim=64, stem_width=32, in_channels=1) == [32, 64, 64]
    assert widths(patch_size=16, embed_dim=64) == [8, 16, 32, 64]
    assert widths(patch_size=2) == [16]


def test_intermediates_are_the_stream_after_each_block():
    model, x = small(), torch.randn(2, 3, 8, 8)
    tokens, named = model(x, return_intermediates=[0, -1])
    assert list(named) == ["block_0", "block_1"]
    torch.testing.assert_close(model.norm(named["block_1"]), tokens)
    with pytest.raises(ValueError, match="no 2 among the 2 blocks; choose 0 to 1"):
        model(x, return_intermediates=[2])


def test_config_survives_json_and_builds_the_network_again():
    model = small(image_size=(8, 16), in_channels=1, positions="none", init_std=FanInStd())
    again = ConvStemViT(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 1, 8, 16)
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)
    model.config["image_size"].append(3)
    assert model.config == again.config


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(0)
    first = small(seed=3).state_dict()
    torch.manual_seed(1)
    second, other = small(seed=3).state_dict(), small(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["stem.0.weight"], other["stem.0.weight"])


def test_convolutions_start_with_the_scale_of_he():
    stem = small(embed_dim=128, stem_width=128, patch_size=4).stem
    assert stem[0].weight.std().item() == pytest.approx((2 / 27) ** 0.5, rel=0.05)
    assert stem[2].weight.std().item() == pytest.approx((2 / (9 * 128)) ** 0.5, rel=0.05)
    assert stem[0].bias.abs().max() == 0


def test_sizes_that_do_not_fit():
    for patch in (1, 6, 12):
        with pytest.raises(ValueError, match=f"must be a power of two, at least 2, got {patch}"):
            small(patch_size=patch)
    with pytest.raises(ValueError, match="stem_width must be at least 1, got 0"):
        small(stem_width=0)
    with pytest.raises(ValueError, match=r"\(30, 30\) is not a whole number of patches of \(4, 4\)"):
        small(image_size=30)
    with pytest.raises(ValueError, match="with 2 after the channels"):
        small()(torch.randn(1, 3, 8))


def test_an_export_equals_the_network():
    model, x = small(), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), model(x))


@pytest.mark.slow
def test_compiles_to_one_graph():
    # In a process of its own: the shape checks of the test run do not compile.
    script = (
        "import torch; from torchjepa.nn import ConvStemViT;"
        "model = ConvStemViT(patch_size=4, embed_dim=16, depth=1, num_heads=2); x = torch.randn(2, 3, 8, 8);"
        "ids = torch.tensor([[0, 1], [1, 2]]);"
        "compiled = torch.compile(model, backend='eager', fullgraph=True);"
        "torch.testing.assert_close(compiled(x, ids), model(x, ids))"
    )
    subprocess.run([sys.executable, "-c", script], check=True)

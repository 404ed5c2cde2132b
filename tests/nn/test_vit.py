"""The ViT's call: sizes, ids, intermediates, presets, reproducible weights."""

import json

import pytest
import torch
from torch import nn

from tests.nn.slow import same_with_gradients
from torchjepa.nn import RotaryPositions, ViT, recompute_activations, sincos_positions
from torchjepa.types import Encoder, Grid

# Analytic counts without positions; within 1 % of the published ones (in millions).
COUNTS = {
    "tiny": (5_486_400, 5.5),
    "small": (21_589_632, 21.7),
    "base": (85_646_592, 86),
    "large": (303_098_880, 304),
    "huge": (630_434_560, 631),
    "giant": (1_011_092_608, 1012),
    "giant_xformers": (1_011_092_608, 1012),
    "gigantic_xformers": (1_842_645_888, 1840),
}


def small_vit(**changes):
    return ViT(**({"patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2} | changes))


@pytest.mark.parametrize("name", COUNTS)
def test_presets_have_the_published_sizes(name):
    with torch.device("meta"):
        vit = ViT.preset(name)
    exact, published = COUNTS[name]
    assert sum(p.numel() for p in vit.parameters()) == exact
    assert exact / 1e6 == pytest.approx(published, rel=0.01)


def test_the_giants_of_vjepa2_have_heads_of_64_channels():
    with torch.device("meta"):
        for name, num_heads in (("giant_xformers", 22), ("gigantic_xformers", 26)):
            vit = ViT.preset(name, patch_size=(2, 16, 16), positions=RotaryPositions(pairing="released"))
            assert vit.blocks[-1].attn.num_heads == num_heads
            assert vit.embed_dim == 64 * num_heads


def test_preset_takes_overrides_and_names_the_nearest():
    assert ViT.preset("tiny", depth=1, patch_size=8).config["patch_size"] == [8, 8]
    with pytest.raises(ValueError, match=r"no preset 'smal'.*did you mean 'small'\?"):
        ViT.preset("smal")


@pytest.mark.parametrize(
    ("patch", "size", "grid"),
    [
        ((4,), (20,), Grid(w=5)),
        (4, (8, 12), Grid(h=2, w=3)),
        ((2, 4, 4), (6, 8, 12), Grid(t=3, h=2, w=3)),
    ],
)
def test_sequences_images_and_videos(patch, size, grid):
    vit = small_vit(patch_size=patch)
    assert isinstance(vit, Encoder)
    assert vit.grid(size) == grid
    assert vit(torch.randn(2, 3, *size)).shape == (2, grid.num_tokens, 16)


def test_one_network_serves_any_aspect_ratio():
    vit = small_vit()
    for size in [(8, 8), (16, 8), (4, 24)]:
        assert vit(torch.randn(1, 3, *size)).shape[1] == size[0] * size[1] // 16


def test_visible_tokens_equal_the_dense_ones_where_nothing_mixes():
    vit = small_vit(depth=0)
    x = torch.randn(3, 3, 8, 12)
    ids = torch.stack([torch.randperm(6)[:4] for _ in range(3)])
    dense = vit(x)
    for sample in range(3):
        torch.testing.assert_close(vit(x, ids)[sample], dense[sample, ids[sample]])


def test_tokens_follow_the_order_of_their_ids():
    vit = small_vit()
    x, order = torch.randn(1, 3, 8, 12), torch.randperm(6)
    torch.testing.assert_close(vit(x, order[None])[0], vit(x)[0, order], atol=1e-5, rtol=1e-5)


def test_hidden_patches_are_never_seen():
    vit = small_vit()
    x = torch.randn(1, 3, 8, 8)
    ids = torch.tensor([[0, 3]])
    changed = x.clone()
    changed[..., :4, 4:] = torch.nan
    torch.testing.assert_close(vit(changed, ids), vit(x, ids))


def test_depth_zero_is_embedding_plus_positions_normalised():
    vit = small_vit(depth=0, in_channels=1)
    nn.init.zeros_(vit.patch_embed.weight)
    expected = nn.functional.layer_norm(sincos_positions(Grid(h=2, w=3), 16).float(), (16,), eps=1e-6)
    torch.testing.assert_close(vit(torch.randn(1, 1, 8, 12))[0], expected)


def test_intermediates_are_the_stream_after_each_block():
    vit = small_vit()
    x = torch.randn(2, 3, 8, 8)
    tokens, named = vit(x, return_intermediates=[0, -1])
    assert list(named) == ["block_0", "block_1"]
    torch.testing.assert_close(vit.norm(named["block_1"]), tokens)
    torch.testing.assert_close(vit.blocks[1](named["block_0"]), named["block_1"])
    assert vit(x, return_intermediates=[])[1] == {}
    with pytest.raises(ValueError, match="no 2 among the 2 blocks; choose 0 to 1"):
        vit(x, return_intermediates=[2])


def test_config_survives_json_and_builds_the_network_again():
    vit = ViT.preset("giant", embed_dim=22, depth=1, num_heads=2, image_size=(32, 64))
    again = ViT(**json.loads(json.dumps(vit.config)))
    again.load_state_dict(vit.state_dict())
    x = torch.randn(1, 3, 32, 64)
    torch.testing.assert_close(again(x), vit(x), rtol=0, atol=0)
    vit.config["patch_size"].append(3)
    assert vit.config == again.config


def test_weights_are_a_function_of_the_seed():
    torch.manual_seed(0)
    first = small_vit(seed=3).state_dict()
    torch.manual_seed(1)
    second, other = small_vit(seed=3).state_dict(), small_vit(seed=4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["blocks.0.attn.qkv.weight"], other["blocks.0.attn.qkv.weight"])


def test_residual_projections_start_smaller_with_depth():
    vit = small_vit(embed_dim=96, depth=3)
    for layer, block in enumerate(vit.blocks):
        for weight in block.residual_weights():
            assert weight.std().item() == pytest.approx(0.02 / (2 * (layer + 1)) ** 0.5, rel=0.05)
        assert block.attn.qkv.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert block.mlp.fc1.bias.abs().max() == 0


def test_spread_of_the_weights_can_be_chosen():
    vit = small_vit(embed_dim=96, init_std=0.1)
    assert vit.blocks[0].attn.qkv.weight.std().item() == pytest.approx(0.1, rel=0.05)
    assert vit.config == small_vit(embed_dim=96).config


def test_sizes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"\(30, 30\) is not a whole number of patches of \(4, 4\)"):
        small_vit(image_size=30)
    with pytest.raises(ValueError, match=r"must be \(T, H, W\), got 32"):
        small_vit(patch_size=(2, 4, 4), image_size=32)
    with pytest.raises(ValueError, match="one to three positive integers"):
        small_vit(patch_size=(0, 4))
    with pytest.raises(ValueError, match=r"must be \[b, c, ...\] with 2 after the channels, got \(8,\)"):
        small_vit()(torch.randn(1, 3, 8))


def test_image_size_of_several_axes_spreads_one_patch():
    assert small_vit(image_size=(4, 8, 8)).config["patch_size"] == [4, 4, 4]
    assert small_vit(image_size=(8, 16)).config["positions"] == "wh"


@pytest.mark.parametrize("positions", ["wh", "rope"])
def test_an_export_equals_the_network_and_leaves_nothing_behind(positions):
    vit, x = small_vit(positions=positions, init_std=0.3), torch.randn(2, 3, 8, 8)
    exported = torch.export.export(vit, (x,)).module()
    torch.testing.assert_close(exported(x), vit(x))


def test_positions_are_not_in_the_weights():
    assert not [name for name in small_vit().state_dict() if "pos" in name]


@pytest.mark.parametrize(
    ("patch", "size"), [((4,), (20,)), (4, (8, 12)), ((2, 4, 4), (6, 8, 12))], ids=["1-d", "2-d", "3-d"]
)
def test_rotary_positions_on_any_grid(patch, size):
    vit = small_vit(patch_size=patch, positions="rope", init_std=0.3)
    x = torch.randn(2, 3, *size)
    dense = vit(x)
    order = torch.stack([torch.randperm(dense.shape[1]) for _ in range(2)])
    expected = dense[torch.arange(2)[:, None], order]
    torch.testing.assert_close(vit(x, order), expected, atol=1e-5, rtol=1e-5)
    torch.nn.init.zeros_(vit.patch_embed.weight)
    assert vit(x).std(dim=1).max() < 1e-5, "positions turn queries and keys and add nothing"


def test_a_picture_is_a_clip_of_one_frame():
    flat = small_vit(positions="rope", init_std=0.3)
    clip = small_vit(patch_size=(1, 4, 4), positions="rope")
    clip.load_state_dict(flat.state_dict())
    x = torch.randn(2, 3, 8, 12)
    torch.testing.assert_close(flat(x), clip(x[:, :, None]))


def test_hidden_patches_do_not_move_the_others():
    vit = small_vit(patch_size=(2, 4, 4), positions="rope", init_std=0.3)
    x, ids = torch.randn(1, 3, 4, 8, 8), torch.tensor([[1, 6]])
    changed = x.clone()
    changed[:, :, :2, :4, :4] = torch.nan
    torch.testing.assert_close(vit(changed, ids), vit(x, ids))
    assert not torch.allclose(vit(x, ids)[0, 0], vit(x)[0, 1], atol=1e-3)


def test_rotary_positions_survive_recomputing():
    vit, x = small_vit(positions="rope", init_std=0.3), torch.randn(2, 3, 8, 12)
    kept = torch.autograd.grad(vit(x).sin().sum(), list(vit.parameters()))
    recompute_activations(vit)
    again = torch.autograd.grad(vit(x).sin().sum(), list(vit.parameters()))
    assert all(torch.equal(a, b) for a, b in zip(kept, again))


def test_rotary_config_builds_the_network_again():
    vit = small_vit(positions=RotaryPositions(pairing="released", trained_grid=(None, 2, 2)))
    again = ViT(**json.loads(json.dumps(vit.config)))
    assert again.config == vit.config
    again.load_state_dict(vit.state_dict())
    x = torch.randn(1, 3, 8, 12)
    torch.testing.assert_close(again(x), vit(x), rtol=0, atol=0)
    assert small_vit(positions="rope").config == small_vit(positions=RotaryPositions()).config


@pytest.mark.parametrize("pairing", ["correct", "released"])
def test_rotary_network_in_bfloat16_is_close(pairing):
    # Angles are taken in float64 and only their sines and cosines rounded: place 40 is as good as place 0.
    positions = RotaryPositions(pairing=pairing)
    vit = small_vit(patch_size=(1, 2), embed_dim=64, positions=positions, init_std=0.1)
    x = torch.randn(2, 3, 1, 80)
    exact = vit(x)
    with torch.autocast("cpu", torch.bfloat16):
        mixed = vit(x)
    for low in (mixed, vit.bfloat16()(x.bfloat16())):
        assert low.dtype == torch.bfloat16
        errors = (low.float() - exact).norm(dim=2) / exact.norm(dim=2)
        assert errors.max() < 0.03


def three_masks(b, num_tokens):
    """Ids of 5, 1 and 3 tokens a sample, some of them in more than one mask."""
    order = [torch.rand(b, num_tokens).argsort(1) for _ in range(3)]
    return [each[:, :length].sort(1).values for each, length in zip(order, (5, 1, 3))]


@pytest.mark.parametrize("positions", ["thw", RotaryPositions(), RotaryPositions(pairing="released")])
@pytest.mark.parametrize("recomputes", [False, True])
def test_segments_are_masks_of_their_own(positions, recomputes):
    torch.manual_seed(0)
    vit = small_vit(patch_size=(2, 4, 4), positions=positions).double()
    x = torch.randn(2, 3, 4, 8, 12, dtype=torch.float64, requires_grad=True)
    masks = three_masks(2, 12)
    alone = torch.cat([vit(x, ids) for ids in masks], dim=1)
    if recomputes:
        recompute_activations(vit)
    together = vit(x, torch.cat(masks, dim=1), segments=[5, 1, 3])
    same_with_gradients(together, alone, [x, *vit.parameters()])


def test_segments_in_bfloat16_are_close():
    vit, x, masks = small_vit(), torch.randn(2, 3, 16, 16), three_masks(2, 16)
    with torch.autocast("cpu", torch.bfloat16):
        together = vit(x, torch.cat(masks, dim=1), segments=[5, 1, 3])
    alone = torch.cat([vit(x, ids) for ids in masks], dim=1)
    torch.testing.assert_close(together.float(), alone, atol=0.1, rtol=0)


@pytest.mark.parametrize("segments", [[5, 1], [9, 0], [], [10]])
def test_segments_that_do_not_add_up(segments):
    with pytest.raises(ValueError, match="segments must be positive and add up to the 9 tokens"):
        small_vit()(torch.randn(2, 3, 16, 16), torch.cat(three_masks(2, 16), dim=1), segments=segments)

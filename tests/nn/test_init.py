"""Spreads that follow from the number of inputs."""

import pytest

from torchjepa.nn import FanInStd, Predictor, ViT


def test_every_layer_has_the_spread_of_its_fan_in():
    vit = ViT(patch_size=4, in_channels=8, embed_dim=64, depth=1, num_heads=2, init_std=FanInStd(0.7))
    block = vit.blocks[0]
    for weight, fan_in in (
        (vit.patch_embed.weight, 128),
        (block.attn.qkv.weight, 64),
        (block.mlp.fc1.weight, 64),
        (block.mlp.fc2.weight * 2**0.5, 256),  # the first layer's residual weights are divided by sqrt(2)
    ):
        assert weight.std().item() == pytest.approx(0.7 / fan_in**0.5, rel=0.05)


def test_a_mask_token_has_no_fan_in():
    sizes = {"encoder_dim": 16, "embed_dim": 1024, "depth": 1, "num_heads": 1, "mlp_ratio": 0.1}
    for std in (FanInStd(), 0.02):
        token = Predictor(**sizes, init_std=std).mask_token
        assert token.std().item() == pytest.approx(0.02, rel=0.1)


def test_the_default_gain_is_the_published_spread_at_width_768():
    assert FanInStd()(768) == pytest.approx(0.02, rel=0.1)


def test_a_gain_must_be_positive():
    with pytest.raises(ValueError, match=r"gain must be positive and finite, got 0\.0"):
        FanInStd(0.0)

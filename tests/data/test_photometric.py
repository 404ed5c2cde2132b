import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjepa.data import Photometric
from torchjepa.data.photometric import turn_hue
from torchjepa.rng import uniforms

from .oracles import blurred, jittered, luma, turned

STILL = {"jitter_probability": 0.0, "gray_probability": 0.0}


def images(num=3, channels=3, side=6, key="x"):
    values = uniforms(0, key, ids=np.arange(num), num=channels * side * side)
    return torch.from_numpy(values.reshape(num, channels, side, side).astype(np.float32))


def draws(num, **columns):
    table = uniforms(0, "draws", ids=np.arange(num), num=Photometric.NUM_DRAWS)
    for name, value in columns.items():
        table[:, int(name[1:])] = value
    return table


def test_jitter_equals_a_loop_over_pixels_in_any_order_of_changes():
    strengths = (0.4, 0.5, 0.9, 0.3)
    change = Photometric(1.0, *strengths, gray_probability=0.0)
    x, table = images(24), draws(24)
    table[:, 5] = (np.arange(24) + 0.5) / 24  # each of the 24 orders
    out = change(x.clone(), table)
    for index in range(24):
        expected = jittered(x[index].double().numpy(), table[index], strengths)
        assert np.abs(out[index].numpy() - expected).max() < 2e-6


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3), st.floats(-2, 2))
def test_hue_equals_colorsys(pixel, turns):
    pixel = np.float32(pixel)
    out = turn_hue(torch.from_numpy(pixel).view(1, 3, 1, 1), torch.full((1, 1, 1, 1), turns))
    assert np.abs(out.flatten().numpy() - turned([float(v) for v in pixel], turns)).max() < 2e-5


def test_a_full_turn_changes_nothing():
    x = images()
    assert torch.allclose(turn_hue(x, torch.ones(3, 1, 1, 1)), x, atol=1e-5)
    assert not torch.allclose(turn_hue(x, torch.full((3, 1, 1, 1), 0.5)), x, atol=0.1)


def test_gray_is_luma_in_all_channels():
    x = images()
    out = Photometric(jitter_probability=0, gray_probability=1)(x.clone(), draws(3))
    for channel in range(3):
        assert torch.allclose(out[:, channel], luma(x.unbind(1)), atol=1e-6)


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_equals_a_loop_and_follows_each_samples_sigma(channels):
    change = Photometric(**STILL, blur_probability=1.0, blur_sigma=(0.1, 1.0))
    x, table = images(4, channels, side=9), draws(4)
    out = change(x.clone(), table)
    for index in range(4):
        for channel in range(channels):
            expected = blurred(x[index, channel].double().numpy(), 0.1 + 0.9 * table[index, 8], radius=3)
            assert np.abs(out[index, channel].numpy() - expected).max() < 1e-6


def test_blur_of_an_image_smaller_than_its_kernel_keeps_a_constant():
    out = Photometric(**STILL, blur_probability=1.0)(torch.full((2, 3, 4, 3), 0.25), draws(2))
    assert torch.allclose(out, torch.full((2, 3, 4, 3), 0.25))


def test_autocast_changes_nothing():
    change, table = Photometric(blur_probability=1.0), draws(4)
    plain = change(images(4), table)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(change(images(4), table), plain)


def test_solarise_inverts_from_its_threshold():
    x = torch.tensor([0.0, 0.4, 0.5, 1.0]).view(1, 1, 2, 2)
    out = Photometric(**STILL, solarise_probability=1.0)(x, draws(1))
    assert out.flatten().tolist() == pytest.approx([0.0, 0.4, 0.5, 0.0])


def test_probabilities_choose_samples_and_zero_chooses_none():
    x = images(6)
    assert torch.equal(Photometric(**STILL)(x.clone(), draws(6)), x)
    table = draws(6, c9=np.asarray([0.0, 0.29, 0.3, 0.31, 0.9, 0.999]))
    changed = Photometric(**STILL, solarise_probability=0.3)(x.clone(), table) != x
    assert changed.flatten(1).any(dim=1).tolist() == [True, True, False, False, False, False]


def test_gray_images_skip_what_needs_colour():
    x = images(5, channels=1)
    only_colour = Photometric(1.0, brightness=0, contrast=0, saturation=1, hue=0.5, gray_probability=1)
    assert torch.equal(only_colour(x.clone(), draws(5)), x)
    out = Photometric(1.0, brightness=0.5, contrast=0)(x.clone(), draws(5))
    factors = torch.from_numpy(0.5 + draws(5)[:, 1]).float().view(5, 1, 1, 1)
    assert torch.allclose(out, (x * factors).clamp(0, 1))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [5, 32, 33, 64])
def test_a_sample_comes_out_bit_for_bit_alike_alone_and_in_any_batch(channels, side):
    change = Photometric(1.0, gray_probability=0.3, blur_probability=1.0, solarise_probability=0.5)
    x, table = images(9, channels, side), draws(9)
    whole = change(x.clone(), table)
    for rows in (slice(0, 1), slice(4, 5), slice(2, 9), slice(None, None, 2)):
        assert torch.equal(change(x[rows].clone(), table[rows]), whole[rows])


def test_values_stay_between_zero_and_one():
    change = Photometric(1.0, 2.0, 3.0, 4.0, 0.5, blur_probability=0.5, solarise_probability=0.5)
    out = change(images(64), draws(64))
    assert out.min() >= 0
    assert out.max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"jitter_probability": 1.5}, r"jitter_probability must be in \[0, 1\], got 1\.5"),
        ({"blur_probability": -0.1}, r"blur_probability must be in \[0, 1\], got -0\.1"),
        ({"brightness": -1}, "brightness must be at least 0"),
        ({"hue": 0.6}, r"hue must be at least 0 and at most 0\.5, got 0\.6"),
        ({"solarise_threshold": 1.5}, r"solarise_threshold must be at least 0 and at most 1\.0, got 1\.5"),
        ({"blur_sigma": (0.0, 1.0)}, r"blur_sigma must be 0 < low <= high, got \(0\.0, 1\.0\)"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Photometric(**arguments)

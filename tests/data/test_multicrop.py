import numpy as np
import pytest
import torch

from torchjepa.data import MultiCropTransform, Photometric, Preprocessing, TwoViewTransform
from torchjepa.data.multicrop import local_image_size

from .test_transforms import SIZES, keys, pictures, views

STILL = Photometric(jitter_probability=0, gray_probability=0)
PLAIN = Preprocessing(24, 3, (0.0,) * 3, (1.0,) * 3)


def sizes_of(transform):
    return [tuple(view.shape) for view in views(transform, pictures(SIZES), keys(range(6)))]


def test_global_views_come_first_and_local_ones_are_smaller():
    assert sizes_of(MultiCropTransform(Preprocessing(24))) == [(6, 3, 24, 24)] * 2 + [(6, 3, 16, 16)] * 6
    small = MultiCropTransform(Preprocessing(32, 1, (0.5,), (0.5,)), num_global=1, num_local=2, local_size=12)
    assert sizes_of(small) == [(6, 1, 32, 32), (6, 1, 12, 12), (6, 1, 12, 12)]
    assert sizes_of(MultiCropTransform(PLAIN, num_global=3, num_local=0)) == [(6, 3, 24, 24)] * 3


def test_the_published_numbers_are_the_defaults():
    transform = MultiCropTransform(Preprocessing(224))
    assert (transform.num_global, transform.num_local) == (2, 6)
    assert (transform.global_scale, transform.local_scale) == ((0.3, 1.0), (0.05, 0.3))
    assert [colour.blur_probability for colour in transform.colour] == [1.0, 0.1, 0.5]
    assert [colour.solarise_probability for colour in transform.colour] == [0.0, 0.2, 0.0]
    assert local_image_size(224) == 96
    assert (local_image_size(224, 14), local_image_size(32, 4), local_image_size(8)) == (98, 12, 16)


def test_the_global_views_are_those_of_two_views():
    pair = TwoViewTransform(Preprocessing(24), scale=(0.3, 1.0))
    many = MultiCropTransform(Preprocessing(24))
    images, sample_keys = pictures(SIZES), keys(range(6))
    for one, other in zip(
        views(pair, images, sample_keys), views(many, images, sample_keys)[:2], strict=True
    ):
        assert torch.equal(one, other)


def test_local_views_cover_their_share_of_the_image():
    # Red tells the column and green the row, so that a crop shows where it was cut.
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[:, :, 0], ramp[:, :, 1] = np.arange(200), np.arange(200)[:, None]
    transform = MultiCropTransform(PLAIN, local_size=20, flip_probability=0.0, colour=(STILL,) * 3)
    shown = views(transform, [ramp] * 100, keys(range(100)))
    for low, high, part in ((0.3, 1.0, shown[:2]), (0.05, 0.3, shown[2:])):
        pixels = 255 * torch.cat(part)
        side = pixels.shape[-1]
        # From the first pixel's centre to the last one's.
        spans = (pixels.amax(dim=(2, 3)) - pixels.amin(dim=(2, 3)))[:, :2] * side / (side - 1) / 200
        areas = spans.prod(dim=1)
        assert areas.min() > low - 0.03
        assert areas.max() < high + 0.03
        assert areas.max() - areas.min() > 0.8 * (high - low)


def test_a_sample_is_augmented_alike_alone_and_in_any_batch():
    transform = MultiCropTransform(Preprocessing(24), num_local=3)
    images = pictures(SIZES)
    whole = views(transform, images, keys(range(6)))
    for row in range(6):
        for one, every in zip(views(transform, [images[row]], keys([row])), whole, strict=True):
            assert torch.equal(one[0], every[row])
    assert len({view.sum().item() for view in whole}) == len(whole)


def test_each_kind_of_view_has_its_colours():
    invert = Photometric(
        jitter_probability=0, gray_probability=0, solarise_probability=1, solarise_threshold=0
    )
    images, sample_keys = pictures([(30, 30)] * 4), keys(range(4))
    plain = views(MultiCropTransform(PLAIN, colour=(STILL,) * 3), images, sample_keys)
    for kind, places in enumerate(([0], [1], range(2, 8))):
        colour = tuple(invert if each == kind else STILL for each in range(3))
        changed = views(MultiCropTransform(PLAIN, colour=colour), images, sample_keys)
        for place in range(8):
            expected = 1 - plain[place] if place in places else plain[place]
            assert torch.equal(changed[place], expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_global": 0}, "num_global must be at least 1 and num_local at least 0, got 0 and 6"),
        ({"num_local": -1}, "got 2 and -1"),
        ({"local_size": 0}, "local_size must be at least 1, got 0"),
        ({"local_scale": (0.3, 0.1)}, r"scale must be two shares .* got \(0\.3, 0\.1\)"),
        ({"global_scale": (0.0, 1.0)}, r"got \(0\.0, 1\.0\)"),
        ({"flip_probability": 1.5}, "flip_probability must be in"),
    ],
)
def test_wrong_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        MultiCropTransform(Preprocessing(24), **changes)

import dataclasses
import json

import numpy as np
import pytest
import torch

from torchjepa.data import (
    DataError,
    MaskedViewTransform,
    Photometric,
    Preprocessing,
    SampleKeys,
    TwoViewTransform,
    resizing,
)
from torchjepa.data.transforms import crop_boxes
from torchjepa.rng import uniforms

from .oracles import box_of, luma, resize

WHOLE = np.asarray([[[0, 0, 20, 20]]])
SIZES = [(32, 32), (48, 20), (9, 200), (200, 9), (1, 1), (33, 31)]


def pictures(sizes, channels=3):
    return [
        (uniforms(0, "pictures", ids=[index], num=h * w * channels) * 256)
        .astype(np.uint8)
        .reshape(h, w, channels)
        for index, (h, w) in enumerate(sizes)
    ]


def soft_picture(size):
    # Far enough from 0 and 255 that nothing is cut between the two passes of Pillow's resampling.
    return pictures([size], channels=1)[0] // 4 + 96


def keys(ids, epochs=None, seed=0):
    ids = np.asarray(ids)
    return SampleKeys(seed, np.zeros_like(ids) if epochs is None else np.asarray(epochs), ids)


def views(transform, images, sample_keys):
    return transform.finish(transform.crop(images, sample_keys), sample_keys)


@pytest.mark.parametrize("scale", [(0.3, 1.0), (0.08, 1.0), (1.0, 1.0)])
def test_boxes_equal_a_loop(scale):
    ratio = (3 / 4, 4 / 3)
    sizes = np.asarray(SIZES * 50)
    draws = uniforms(1, "boxes", ids=np.arange(len(sizes)), num=23)
    boxes = crop_boxes(sizes, draws, scale, ratio)
    for (height, width), draw, box in zip(sizes, draws, boxes):
        assert tuple(box) == box_of(height, width, draw, scale, ratio)
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height


def test_areas_and_shapes_fill_their_ranges():
    draws = uniforms(2, "boxes", ids=np.arange(5000), num=23)
    boxes = crop_boxes(np.full((5000, 2), 100), draws, (0.3, 0.5), (3 / 4, 4 / 3))
    width, height = (boxes[:, 2:] - boxes[:, :2]).T
    area, shape = width * height / 1e4, width / height
    assert (area.min(), area.max()) == pytest.approx((0.3, 0.5), abs=0.01)  # whole pixels
    assert (shape.min(), shape.max()) == pytest.approx((3 / 4, 4 / 3), abs=0.02)
    assert np.median(shape) == pytest.approx(1, abs=0.03)
    assert (boxes.min(), boxes.max()) == (0, 100)  # both ends of the range of places


def test_the_last_draw_below_one_stays_inside():
    sizes = np.stack([np.arange(1, 400), np.arange(400, 1, -1)], axis=1)
    draws = np.full((len(sizes), 23), np.nextafter(1, 0))
    draws[:, :20] = uniforms(3, "boxes", ids=np.arange(len(sizes)), num=20)
    boxes = crop_boxes(sizes, draws, (0.08, 1.0), (3 / 4, 4 / 3))
    assert (boxes[:, 2:] <= sizes[:, ::-1]).all()
    assert (boxes[:, :2] < boxes[:, 2:]).all()


@pytest.mark.parametrize(("size", "side"), [((32, 32), 16), ((20, 48), 32), ((9, 13), 12)])
def test_crops_equal_a_slow_antialiased_bicubic(size, side):
    image = [soft_picture(size)]
    transform = MaskedViewTransform(Preprocessing(side, 1, (0.0,), (1.0,)))
    crop = transform.crop(image, keys([5]))[0][0, 0, :, :, 0].numpy()
    draws = keys([5]).draw("crop", 0, num=23)[0]
    expected = resize(image[0][:, :, 0], box_of(*size, draws, (0.3, 1.0), (3 / 4, 4 / 3)), side)
    assert np.abs(crop - expected).max() <= 1.5  # two roundings to whole numbers


@pytest.mark.parametrize("channels", [1, 3])
def test_a_processor_without_vector_code_gives_the_same_crops_but_for_a_level(channels, monkeypatch):
    images = [image // 2 + 64 for image in pictures(SIZES, channels)]
    preprocessing = Preprocessing(24, channels, (0.5,) * channels, (0.5,) * channels)
    crops = []
    for there in (True, False):
        monkeypatch.setattr(resizing, "_TORCH_RESIZES", there)
        crops.append(MaskedViewTransform(preprocessing).crop(images, keys(range(6)))[0].int())
    assert crops[0].shape == crops[1].shape == (1, 6, 24, 24, channels)
    assert (crops[0] - crops[1]).abs().max() <= 2  # Pillow 12 and up may take the axes in another order


@pytest.mark.parametrize("size", [(24, 24), (48, 31)])
def test_any_number_of_channels_is_resized(size):
    image = pictures([size], channels=5)[0]
    five = Preprocessing(24, 5, (0.0,) * 5, (1.0,) * 5).resize([image])
    each = [Preprocessing(24, 1, (0.0,), (1.0,)).resize([image[:, :, c : c + 1]]) for c in range(5)]
    assert (five.int() - torch.cat(each, dim=3).int()).abs().max() <= 1


def test_read_only_and_transposed_images_are_taken_without_a_warning(recwarn):
    image = pictures([(32, 32)])[0]
    frozen = image.copy()
    frozen.setflags(write=False)
    planar = np.ascontiguousarray(image.transpose(2, 0, 1)).transpose(1, 2, 0)
    whole = [Preprocessing(32).resize([each]) for each in (image, frozen, planar)]
    assert all(torch.equal(each, whole[0]) for each in whole)
    assert torch.equal(whole[0][0], torch.from_numpy(image))
    assert not recwarn


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("by_torch", [True, False])
def test_an_image_of_the_right_size_is_left_as_it_is(channels, by_torch, monkeypatch):
    monkeypatch.setattr(resizing, "_TORCH_RESIZES", by_torch)
    (image,) = pictures([(20, 20)], channels)
    turned = image.transpose(1, 0, 2)[:, ::-1]
    turned.flags.writeable = False
    for given in (image, turned):
        kept = resizing.resize_frames(given[None], 20, channels)[0]  # resampled to its own size
        assert np.array_equal(resizing.resize_boxes([given], WHOLE, None, 20, channels)[0, 0].numpy(), given)
        assert np.array_equal(kept.numpy(), given)


def test_normalising_part_by_part_changes_no_bit():
    pixels = torch.stack([torch.from_numpy(image) for image in pictures([(300, 300)] * 4)])
    preprocessing = Preprocessing(300)
    mean, std = (torch.tensor(each)[:, None, None] for each in (preprocessing.mean, preprocessing.std))
    expected = (pixels.permute(0, 3, 1, 2).float() / 255 - mean) / std
    assert torch.equal(preprocessing.normalise(pixels), expected)


def test_clips_are_normalised_frame_by_frame():
    preprocessing = Preprocessing(8, num_frames=3, frame_rate=4)
    clips = torch.randint(256, (2, 3, 8, 10, 3), dtype=torch.uint8)
    expected = [torch.stack([preprocessing.normalise(clip)[i] for i in range(3)], dim=1) for clip in clips]
    assert torch.equal(preprocessing.normalise_clips(clips), torch.stack(expected))


@pytest.mark.parametrize(
    "wrong", [{"num_frames": 0}, {"frame_rate": 4.0}, {"num_frames": 2, "frame_rate": 0}]
)
def test_a_clip_has_frames_and_a_rate_only_with_them(wrong):
    with pytest.raises(ValueError, match="num_frames must be at least 1"):
        Preprocessing(8, **wrong)


def test_flip_mirrors_the_same_crop():
    preprocessing, images = Preprocessing(16), pictures([(32, 32)] * 8)
    straight = MaskedViewTransform(preprocessing).crop(images, keys(range(8)))[0]
    mirrored = MaskedViewTransform(preprocessing, flip_probability=1.0).crop(images, keys(range(8)))[0]
    assert torch.equal(mirrored, straight.flip(3))
    some = MaskedViewTransform(preprocessing, flip_probability=0.5).crop(images, keys(range(8)))[0]
    is_mirrored = (some == mirrored).flatten(2).all(dim=2)[0]
    assert 0 < is_mirrored.sum() < 8


@pytest.mark.parametrize("size", [(30, 50), (50, 30), (24, 24), (7, 9)])
def test_preprocessing_is_a_resized_centre_crop(size):
    image = soft_picture(size)
    out = Preprocessing(24, 1, (0.5,), (0.25,))(image)
    side = min(size)
    left, top = (size[1] - side) // 2, (size[0] - side) // 2
    expected = resize(image[:, :, 0], (left, top, left + side, top + side), 24) / 255
    assert out.shape == (1, 24, 24)
    assert np.abs(out[0].numpy() * 0.25 + 0.5 - expected).max() <= 1.5 / 255


def test_channels_are_converted():
    color = pictures([(8, 8)])[0]
    gray = Preprocessing(8, 1, (0.0,), (1.0,))(color)[0].numpy() * 255
    assert np.abs(gray - luma(color.astype(np.float64).transpose(2, 0, 1))).max() <= 1
    tripled = Preprocessing(8)(color[:, :, :1]) * torch.tensor([0.229, 0.224, 0.225])[:, None, None]
    tripled += torch.tensor([0.485, 0.456, 0.406])[:, None, None]
    assert torch.allclose(tripled * 255, torch.from_numpy(color[:, :, 0]).float().expand(3, 8, 8), atol=1e-3)
    many = pictures([(8, 8)], channels=4)[0]
    assert torch.equal(
        Preprocessing(8, 4, (0.0,) * 4, (1.0,) * 4)(many),
        torch.from_numpy(many).permute(2, 0, 1).float() / 255,
    )
    with pytest.raises(DataError, match="images of 4 channels cannot become 3"):
        Preprocessing(8)(many)


TRANSFORMS = [
    MaskedViewTransform(Preprocessing(24), flip_probability=0.5),
    TwoViewTransform(Preprocessing(24)),
    TwoViewTransform(Preprocessing(24, 1, (0.5,), (0.5,))),
]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_a_sample_is_augmented_alike_alone_and_in_any_batch(transform):
    sizes, ids, epochs = SIZES * 2, list(range(100, 112)), [0] * 7 + [1] * 5
    images = pictures(sizes)
    whole = views(transform, images, keys(ids, epochs))
    for rows in ([0], [11], [11, 3, 7], list(range(6, 12))):
        part = views(
            transform, [images[row] for row in rows], keys([ids[r] for r in rows], [epochs[r] for r in rows])
        )
        for one, every in zip(part, whole):
            assert torch.equal(one, every[rows])


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_seed_epoch_sample_and_view_each_change_the_draws(transform):
    image = pictures([(40, 40)])
    first = views(transform, image, keys([3]))
    for other in (keys([4]), keys([3], [1]), keys([3], seed=1)):
        assert not torch.equal(views(transform, image, other)[0], first[0])
    assert all(not torch.equal(view, first[0]) for view in first[1:])
    assert all(torch.equal(one, two) for one, two in zip(views(transform, image, keys([3])), first))


def test_views_are_normalised_floats_of_the_right_shape():
    one = views(TRANSFORMS[0], pictures(SIZES), keys(range(6)))
    two = views(TRANSFORMS[2], pictures(SIZES), keys(range(6)))
    assert [view.shape for view in one] == [(6, 3, 24, 24)]
    assert [view.shape for view in two] == [(6, 1, 24, 24)] * 2
    assert all(view.dtype == torch.float32 and view.is_contiguous() for view in (*one, *two))


def test_the_published_pair_blurs_the_first_view_and_solarises_the_second():
    first, second = TwoViewTransform(Preprocessing(24)).colour
    assert (first.blur_probability, first.solarise_probability) == (1.0, 0.0)
    assert (second.blur_probability, second.solarise_probability) == (0.1, 0.2)
    assert (first.brightness, first.contrast, first.saturation, first.hue) == (0.4, 0.4, 0.2, 0.1)
    assert (first.jitter_probability, first.gray_probability) == (0.8, 0.2)


def test_preprocessing_survives_json():
    preprocessing = Preprocessing(24)
    assert Preprocessing(**json.loads(json.dumps(dataclasses.asdict(preprocessing)))) == preprocessing


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Preprocessing(0), "image_size and num_channels must be at least 1"),
        (lambda: Preprocessing(8, 1), r"mean and std need 1 numbers \(num_channels\)"),
        (lambda: Preprocessing(8, 1, (0.5,), (0.0,)), "std above 0"),
        (
            lambda: MaskedViewTransform(Preprocessing(8), scale=(0.0, 1.0)),
            r"scale must be .* got \(0\.0, 1\.0\)",
        ),
        (
            lambda: MaskedViewTransform(Preprocessing(8), ratio=(2.0, 1.0)),
            r"ratio must be .* got \(2\.0, 1\.0\)",
        ),
        (
            lambda: TwoViewTransform(Preprocessing(8), flip_probability=2.0),
            r"flip_probability must be in \[0, 1\]",
        ),
    ],
)
def test_wrong_arguments_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_colour_changes_nothing_when_all_is_off():
    still = Photometric(jitter_probability=0, gray_probability=0)
    transform = TwoViewTransform(Preprocessing(16), colour=(still, still))
    images, sample_keys = pictures([(20, 20)] * 2), keys([0, 1])
    crops = transform.crop(images, sample_keys)
    for view, crop in zip(transform.finish(crops, sample_keys), crops[0], strict=True):
        assert torch.equal(view, transform.preprocessing.normalise(crop))

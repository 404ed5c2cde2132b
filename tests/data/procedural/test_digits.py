import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.neighbors import KNeighborsClassifier

from torchjepa.data import DigitsSource
from torchjepa.data.procedural.digits import _enlarge, _strokes, digits_of
from torchjepa.rng import uniforms


def pixels(source):
    return np.stack([source.read(index) for index in range(len(source))])


def test_train_and_test_digits_are_disjoint_and_together_all():
    train, test = digits_of("train"), digits_of("test")
    assert len(train[0]) + len(test[0]) == 1797
    together = {image.tobytes() for image in train[0]} & {image.tobytes() for image in test[0]}
    assert not together
    everything = load_digits()
    whole = sorted(image.astype(np.float32).tobytes() for image in everything.images / 16)
    assert sorted(image.tobytes() for image in np.concatenate([train[0], test[0]])) == whole
    share = np.bincount(test[1]) / np.bincount(everything.target)
    assert np.abs(share - 0.2).max() < 0.01


def test_canvases_are_keyed_by_split_seed_and_place_alone():
    few, many = DigitsSource("train", 250), DigitsSource("train", 450)
    assert np.array_equal(pixels(few), pixels(many)[:250])
    assert np.array_equal(few.labels, many.labels[:250])
    assert not np.array_equal(pixels(few), pixels(DigitsSource("test", 250)))
    assert not np.array_equal(pixels(few), pixels(DigitsSource("train", 250, seed=1)))


def test_the_set_says_what_it_is():
    source = DigitsSource("test", 300)
    image = source.read(0)
    assert (image.shape, image.dtype) == ((32, 32, 1), np.uint8)
    assert source.classes == tuple("0123456789")
    assert source.num_channels == 1
    assert source.name(17) == "test/17"
    assert set(source.labels.tolist()) == set(range(10))
    _, targets = digits_of("test")
    assert np.array_equal(source.labels, targets[source.digit_ids])
    assert source.fingerprint()["num_samples"] == 300


def test_a_digit_is_enlarged_bilinearly_where_it_was_put():
    digit = np.zeros((8, 8), dtype=np.float32)
    digit[2, 5] = 1.0
    side, corner = 16.0, (0.25, 0.75)
    drawn = _enlarge(torch.from_numpy(digit)[None], torch.tensor([side]), torch.tensor([corner]))[0]
    for row in range(32):
        for column in range(32):
            v = (row + 0.5 - corner[0] * (32 - side)) / side * 8 - 0.5
            u = (column + 0.5 - corner[1] * (32 - side)) / side * 8 - 0.5
            expected = max(0.0, 1 - abs(v - 2)) * max(0.0, 1 - abs(u - 5))
            assert drawn[row, column] == pytest.approx(expected, abs=1e-5)


def test_a_stroke_is_a_gaussian_pen_along_its_curve():
    draws = uniforms(3, "stroke", ids=[0], num=8).astype(np.float32)
    draws[0, 5:7] = 0.5  # in the middle of the canvas
    ink = _strokes(torch.from_numpy(draws)[:, None])[0].numpy()
    width, contrast, length, angle = (
        0.7 + 0.5 * draws[0, 0],
        0.4 + 0.6 * draws[0, 1],
        6 + 8 * draws[0, 2],
        2 * np.pi * draws[0, 3],
    )
    bend = 0.8 * (draws[0, 4] - 0.5) * length
    t = np.linspace(-1, 1, 2001)
    rows = 16 + np.sin(angle) * length / 2 * t + np.cos(angle) * bend * (1 - t * t)
    columns = 16 + np.cos(angle) * length / 2 * t - np.sin(angle) * bend * (1 - t * t)
    expected = np.zeros((32, 32))
    for row in range(32):
        for column in range(32):
            blobs = np.exp(-0.5 * ((row + 0.5 - rows) ** 2 + (column + 0.5 - columns) ** 2) / width**2)
            expected[row, column] = blobs.sum() * length / 2000 / (np.sqrt(2 * np.pi) * width)
    assert np.abs(ink - np.minimum(contrast * expected, 1)).max() < 0.06


def test_later_strokes_come_half_of_the_time():
    draws = torch.full((1000, 2, 8), 0.5)
    draws[:, 1, 5:7] = 0.2
    draws[:, 1, 7] = torch.linspace(0, 0.999, 1000)
    corner = _strokes(draws)[:, :12, :12].amax(dim=(1, 2)) > 0.3
    assert corner.sum() == 500


def test_nearest_neighbours_on_pixels_fail():
    train, test = DigitsSource("train", 4000), DigitsSource("test", 1000)
    neighbours = KNeighborsClassifier(20, metric="cosine")
    neighbours.fit(pixels(train).reshape(4000, -1).astype(np.float32), train.labels)
    score = neighbours.score(pixels(test).reshape(1000, -1).astype(np.float32), test.labels)
    assert 0.2 < score < 0.4


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        DigitsSource("val")
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        DigitsSource("train", 0)
    with pytest.raises(ValueError, match="num_strokes must be at least 0, got -1"):
        DigitsSource("train", 1, num_strokes=-1)
    assert DigitsSource("train", 1, num_strokes=0).read(0).shape == (32, 32, 1)

"""Arrays to pictures: what is shown is what is there."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image

from tests.report.material import make_material
from torchjepa.data import Preprocessing
from torchjepa.report.pictures import (
    BLOCK_COLOURS,
    draw_masks,
    enlarge,
    png_uri,
    principal_colours,
    shrink,
    to_pictures,
)


def pictures(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


@pytest.mark.parametrize("channels", [1, 3])
def test_normalisation_is_undone(channels):
    image = pictures(8, 8, channels)
    preprocessing = Preprocessing(
        image_size=8, num_channels=channels, mean=(0.4,) * channels, std=(0.2,) * channels
    )
    shown = to_pictures(preprocessing(image)[None], preprocessing.mean, preprocessing.std)
    assert shown.shape == (1, 8, 8, 3)
    np.testing.assert_array_equal(shown[0], np.broadcast_to(image, (8, 8, 3)))


def test_many_channels_show_the_first_three_and_values_are_cut():
    x = torch.full((2, 5, 4, 4), 9.0)
    x[:, 0] = -9
    shown = to_pictures(x, (0.0,) * 5, (1.0,) * 5)
    assert shown.shape == (2, 4, 4, 3)
    assert shown[0, 0, 0].tolist() == [0, 255, 255]


def test_a_png_reads_back():
    picture = pictures(5, 7, 3)
    data = base64.b64decode(png_uri(picture).removeprefix("data:image/png;base64,"))
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(data))), picture)


def test_sizes():
    assert enlarge(pictures(32, 32, 3)).shape == (192, 192, 3)
    assert enlarge(pictures(100, 50, 3)).shape == (200, 100, 3)
    assert enlarge(pictures(224, 224, 3)).shape == (224, 224, 3)
    assert shrink(pictures(2, 32, 16, 3)).shape == (2, 32, 16, 3)
    assert shrink(pictures(2, 256, 128, 3)).shape == (2, 128, 64, 3)


def test_the_context_shows_its_patches_and_nothing_else():
    masks = make_material(side=16).masks
    assert masks is not None
    for sample, (picture, context, targets) in enumerate(draw_masks(masks)):
        cell = picture.shape[0] // 4
        for token in range(16):
            row, column = divmod(token, 4)
            place = np.s_[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell]
            if token in masks.context[sample]:
                np.testing.assert_array_equal(context[place], picture[place])
            else:
                assert (context[place] == 128).all()
            corner = targets[row * cell, column * cell].tolist()
            if token == masks.targets[sample][1][0]:  # the last block's outline lies on top
                assert corner == list(BLOCK_COLOURS[1])


def test_targets_that_are_no_rectangle_are_outlined_cell_by_cell():
    masks = make_material(side=16).masks
    assert masks is not None
    scattered = type(masks)(masks.images[:1], masks.grid, masks.context[:1], np.array([[[0, 15]]]))
    targets = draw_masks(scattered)[0][2]
    coloured = (targets == BLOCK_COLOURS[0]).all(axis=-1)
    assert coloured[0, 0]
    assert coloured[-1, -1]
    assert not coloured[:, 100:140].any()


def test_principal_colours_are_those_of_a_plain_svd():
    tokens = np.random.default_rng(1).normal(size=(2, 3, 4, 6)).astype(np.float32)
    tokens *= np.array([9, 5, 3, 1, 1, 1], dtype=np.float32)
    (shown,) = principal_colours(tokens)
    flat = tokens.reshape(-1, 6).astype(np.float64)
    flat -= flat.mean(axis=0)
    _, _, directions = np.linalg.svd(flat, full_matrices=False)
    for component in range(3):
        scores = flat @ directions[component]
        scores *= np.sign(directions[component][np.abs(directions[component]).argmax()])
        low, high = np.percentile(scores, [2, 98])
        wanted = 255 * ((scores - low) / (high - low)).clip(0, 1)
        np.testing.assert_allclose(shown.reshape(-1, 3)[:, component], wanted, atol=0.51)


def test_collapsed_and_narrow_features_have_a_colour_too():
    (grey,) = principal_colours(np.ones((1, 2, 2, 5), dtype=np.float32))
    assert (grey == 128).all()
    (two,) = principal_colours(np.random.default_rng(0).normal(size=(1, 3, 3, 2)).astype(np.float32))
    assert (two[..., 2] == 128).all()

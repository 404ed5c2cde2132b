"""Patches against convolutions and plain indexing."""

import pytest
import torch
import torch.nn.functional as F

from torchjepa.nn import patch_grid, patchify
from torchjepa.types import Grid

SIZES = [((12,), (3,), F.conv1d), ((6, 10), (3, 2), F.conv2d), ((4, 6, 4), (2, 3, 2), F.conv3d)]


@pytest.mark.parametrize(("size", "patch", "conv"), SIZES)
def test_a_linear_map_of_patches_is_the_convolution(size, patch, conv):
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    weight = torch.randn(5, 3, *patch, dtype=torch.float64)
    expected = conv(x, weight, stride=patch).flatten(2).transpose(1, 2)
    torch.testing.assert_close(patchify(x, patch) @ weight.flatten(1).T, expected)


@pytest.mark.parametrize(("size", "patch", "conv"), SIZES)
def test_ids_pick_from_all_patches(size, patch, conv):
    x = torch.randn(2, 3, *size)
    dense = patchify(x, patch)
    ids = torch.stack([torch.randperm(dense.shape[1])[:3] for _ in range(2)])
    picked = patchify(x, patch, ids)
    for sample in range(2):
        for place in range(3):
            torch.testing.assert_close(picked[sample, place], dense[sample, ids[sample, place]])


def test_channels_last_and_strided_inputs():
    x = torch.randn(2, 3, 8, 8)
    expected = patchify(x, (4, 4))
    torch.testing.assert_close(patchify(x.contiguous(memory_format=torch.channels_last), (4, 4)), expected)
    torch.testing.assert_close(patchify(x.transpose(2, 3), (4, 4)), patchify(x.mT.contiguous(), (4, 4)))


def test_grid_axes():
    assert patch_grid((12,), (3,)) == Grid(w=4)
    assert patch_grid((6, 10), (3, 2)) == Grid(h=2, w=5)
    assert patch_grid((4, 6, 4), (2, 3, 2)) == Grid(t=2, h=2, w=2)


@pytest.mark.parametrize(
    ("size", "patch", "nearest"),
    [
        ((33, 30), (8, 8), r"\(32, 24\) or \(40, 32\)"),
        ((32, 30), (8, 8), r"\(32, 24\) or \(32, 32\)"),
        ((16, 3), (8, 8), r"\(16, 8\)"),
        ((5, 16, 24), (2, 8, 8), r"\(4, 16, 24\) or \(6, 16, 24\)"),
    ],
)
def test_a_size_that_the_patch_does_not_divide(size, patch, nearest):
    with pytest.raises(
        ValueError, match=rf"is not a whole number.*resize or crop it to {nearest}, or choose"
    ):
        patchify(torch.zeros(1, 1, *size), patch)


def test_another_number_of_axes():
    with pytest.raises(
        ValueError, match=r"patch \(8, 8\) has 2 axes.*2 after the channels, got \(4, 32, 32\)"
    ):
        patch_grid((4, 32, 32), (8, 8))

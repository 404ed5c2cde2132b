import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.masking.shapes import LATTICE, block_shapes
from torchjepa.rng import generator


def test_sizes_stay_inside_the_scale_range_where_they_can():
    sizes = block_shapes(14, 14, (0.15, 0.2), (0.75, 1.5)).sizes
    assert sizes.tolist() == [[5, 6], [5, 7], [6, 5], [6, 6], [7, 5]]


@pytest.mark.parametrize(
    ("grid", "scale", "sizes"),
    [
        ((14, 14), (0.85, 1.0), [[13, 13]]),  # leaves a row and a column out
        ((14, 14), (1.0, 1.0), [[14, 14]]),  # unless the scale says otherwise
        ((2, 2), (0.15, 0.2), [[1, 1]]),  # nothing inside the range: the nearest
        ((1, 20), (0.5, 0.5), [[1, 10]]),  # a full axis is made up for by the other
        ((2, 20), (0.5, 0.5), [[2, 10]]),
        ((20, 1), (1.0, 1.0), [[20, 1]]),
    ],
)
def test_sizes_at_the_edges_of_the_grid(grid, scale, sizes):
    assert block_shapes(*grid, scale, (1.0, 1.0)).sizes.tolist() == sizes


@settings(max_examples=100, deadline=None)
@given(
    height=st.integers(1, 30),
    width=st.integers(1, 30),
    scale=st.floats(0.001, 1.0),
    aspect=st.floats(0.05, 20.0),
)
def test_sizes_fit_the_grid_and_round_by_less_than_one(height, width, scale, aspect):
    shapes = block_shapes(height, width, (scale, scale), (aspect, aspect))
    assert len(shapes.sizes) == 1
    rows, columns = shapes.sizes[0].tolist()
    assert 1 <= rows <= height
    assert 1 <= columns <= width
    wanted = np.sqrt(scale * height * width * aspect)
    if 2 < wanted < height - 1 and 2 < scale * height * width / wanted < width - 1:
        assert abs(rows - wanted) < 1


def test_draws_follow_the_lattice():
    shapes = block_shapes(14, 14, (0.15, 0.2), (0.75, 1.5))
    drawn = shapes.draw(40_000, generator(0))
    for index, size in enumerate(shapes.sizes):
        share = (drawn == size).all(1).mean()
        assert share == pytest.approx((shapes.index == index).sum() / LATTICE**2, abs=0.015)

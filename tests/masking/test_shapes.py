import itertools
import math

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


@settings(max_examples=30, deadline=None)
@given(height=st.integers(1, 24), width=st.integers(1, 24), max_areas=st.integers(1, 5))
def test_few_areas_are_no_more_than_asked_and_sizes_that_occur_anyway(height, width, max_areas):
    all_of_them = block_shapes(height, width, (0.1, 0.3), (0.5, 2.0))
    few = block_shapes(height, width, (0.1, 0.3), (0.5, 2.0), max_areas)
    areas = {rows * columns for rows, columns in all_of_them.sizes.tolist()}
    assert len({rows * columns for rows, columns in few.sizes.tolist()}) == min(max_areas, len(areas))
    assert {tuple(size) for size in few.sizes.tolist()} <= {
        tuple(size) for size in all_of_them.sizes.tolist()
    }
    assert np.array_equal(np.unique(few.index), np.arange(len(few.sizes)))


@pytest.mark.parametrize("side", [32, 56])
def test_few_areas_keep_scale_and_aspect(side):
    def figures(max_areas):
        shapes = block_shapes(side, side, (0.15, 0.2), (0.75, 1.5), max_areas)
        rows, columns = shapes.sizes[shapes.index.ravel()].T
        scale, aspect = rows * columns / side**2, np.log(rows / columns)
        return np.array([scale.mean(), scale.std(), aspect.mean(), aspect.std()])

    every, six = figures(None), figures(6)
    assert abs(six[0] - every[0]) < 0.001
    assert abs(six[1] - every[1]) < 0.002
    assert abs(six[2] - every[2]) < 0.015
    assert abs(six[3] - every[3]) < 0.015


def test_few_areas_are_the_best_there_are():
    # All triples of the 14 areas on 32 x 32, each scored by a plain loop over a coarse lattice of wishes.
    shapes = block_shapes(32, 32, (0.15, 0.2), (0.75, 1.5))
    wishes = [
        (math.sqrt(scale * 1024 * aspect), math.sqrt(scale * 1024 / aspect))
        for scale in np.linspace(0.152, 0.198, 12)
        for aspect in np.linspace(0.77, 1.48, 12)
    ]
    sizes: dict[int, list[tuple[int, int]]] = {}
    for rows, columns in shapes.sizes.tolist():
        sizes.setdefault(rows * columns, []).append((rows, columns))
    apart = {
        area: [min(math.log(r / a) ** 2 + math.log(c / b) ** 2 for r, c in of_area) for a, b in wishes]
        for area, of_area in sizes.items()
    }

    def score(areas):
        return sum(min(costs) for costs in zip(*(apart[area] for area in areas)))

    chosen = np.unique(block_shapes(32, 32, (0.15, 0.2), (0.75, 1.5), 3).sizes.prod(axis=1)).tolist()
    least = min(score(triple) for triple in itertools.combinations(sizes, 3))
    assert score(chosen) < 1.1 * least

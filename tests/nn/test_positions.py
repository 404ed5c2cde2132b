"""Golden numbers of the released code, and a double loop as oracle."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjepa.nn import sincos_positions
from torchjepa.nn.positions import SinCosPositions, _constant_table
from torchjepa.types import Grid

SIN, COS = 0.841471, 0.540302
UNIFORM = [SIN, 0.046399, 0.002154, COS, 0.998923, 0.999998]
HALF = [SIN, 0.099833, 0.01, 0.001, COS, 0.995004, 0.99995, 1.0]


def slow_axis(position, dim):
    half = dim // 2
    angles = [position / 10000 ** (2 * j / dim) for j in range(half)]
    return [math.sin(a) for a in angles] + [math.cos(a) for a in angles]


def test_released_vjepa_image_numbers():
    table = sincos_positions(Grid(h=2, w=2), 8, layout="hw")
    assert table[1].tolist() == pytest.approx([0, 0, 1, 1, SIN, 0.01, COS, 0.99995], abs=1e-6)


def test_ijepa_swaps_the_halves():
    ours = sincos_positions(Grid(h=2, w=2), 8)
    assert ours[1].tolist() == pytest.approx([SIN, 0.01, COS, 0.99995, 0, 0, 1, 1], abs=1e-6)


def test_released_vjepa_video_numbers():
    grid = Grid(t=2, h=2, w=2)
    uniform = sincos_positions(grid, 16, layout="thw")[5]
    assert uniform.tolist() == pytest.approx([*UNIFORM, 0, 0, 0, 1, 1, 1, *UNIFORM[:4]], abs=1e-6)
    half = sincos_positions(grid, 16, layout="tthw")[5]
    assert half.tolist() == pytest.approx([*HALF, 0, 0, 1, 1, SIN, 0.01, COS, 0.99995], abs=1e-6)


@given(h=st.integers(1, 5), w=st.integers(1, 7), quarter=st.integers(1, 6))
def test_equals_a_loop_over_tokens(h, w, quarter):
    table = sincos_positions(Grid(h=h, w=w), 4 * quarter)
    for row in range(h):
        for column in range(w):
            expected = slow_axis(column, 2 * quarter) + slow_axis(row, 2 * quarter)
            assert table[row * w + column].tolist() == pytest.approx(expected, abs=1e-12)


def test_a_sequence_takes_all_channels():
    table = sincos_positions(Grid(w=5), 6, layout="w")
    assert table[3].tolist() == pytest.approx(slow_axis(3, 6), abs=1e-12)


def test_tokens_of_a_grid_differ():
    table = sincos_positions(Grid(t=3, h=4, w=5), 24, layout="thw")
    assert table.unique(dim=0).shape == (60, 24)


@pytest.mark.parametrize("layout", ["", "x", "wx", "yx"])
def test_unknown_layout(layout):
    with pytest.raises(ValueError, match="must name the axes t, h, w"):
        SinCosPositions(8, layout)


def test_no_positions_is_zero_on_any_grid():
    table = sincos_positions(Grid(t=2, h=2, w=3), 5, layout="none")
    assert torch.equal(table, torch.zeros(12, 5, dtype=torch.float64))
    assert not SinCosPositions(4, "none")(Grid(h=2, w=2), torch.zeros(1)).any()


def test_layout_that_leaves_out_an_axis():
    with pytest.raises(ValueError, match=r"no 't' although the grid has 2 tokens along it; use .*'thw'"):
        sincos_positions(Grid(t=2, h=2, w=2), 8)


def test_dim_below_one():
    with pytest.raises(ValueError, match="dim must be at least 1, got 0"):
        sincos_positions(Grid(w=2), 0)


def test_a_table_is_computed_once_for_each_grid():
    positions = SinCosPositions(8, "wh")
    first = positions(Grid(h=2, w=3), torch.zeros(1))
    assert positions(Grid(h=2, w=3), torch.zeros(2)) is first
    assert positions(Grid(h=3, w=2), torch.zeros(1)).shape == first.shape
    assert positions(Grid(h=2, w=3), torch.zeros(1, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_many_sizes_do_not_pile_up():
    positions = SinCosPositions(4, "w")
    for length in range(1, 60):
        assert positions(Grid(w=length), torch.zeros(1)).shape == (length, 4)
    assert len(positions._tables) <= 16


def test_a_table_made_in_inference_mode_serves_training():
    positions = SinCosPositions(4, "w")
    with torch.inference_mode():
        positions(Grid(w=3), torch.zeros(1))
    scale = torch.ones(4, requires_grad=True)
    (positions(Grid(w=3), scale) * scale).sum().backward()
    assert scale.grad is not None


def test_tables_are_constants_to_a_compiler_as_torch_marks_them():
    marked = torch.compiler.assume_constant_result(lambda: None)
    assert vars(marked).items() <= vars(_constant_table).items()

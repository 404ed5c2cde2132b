import pytest
import torch

from torchjepa.masking import Grid, Masks, RandomMasking, coverage
from torchjepa.rng import generator


def test_maps_count_contexts_and_unions():
    def alternating(grid, batch_size, stream):
        context = torch.tensor([[0, 1], [0, 2]])
        targets = torch.tensor([[[3, 4], [4, 5]], [[1, 5], [4, 5]]])
        return Masks(context, targets)

    maps = coverage(alternating, Grid(h=2, w=3), 6, generator(0), batch_size=2)
    assert maps.context.tolist() == [[[1.0, 0.5, 0.5], [0.0, 0.0, 0.0]]]
    assert maps.target.tolist() == [[[0.0, 0.5, 0.0], [0.5, 1.0, 1.0]]]


def test_shares_of_each_time_step():
    def first_and_last(grid, batch_size, stream):
        return Masks(torch.tensor([[0, 1], [0, 3]]), torch.tensor([[[5]], [[5]]]))

    maps = coverage(first_and_last, Grid(t=3, h=1, w=2), 2, generator(0), batch_size=2)
    assert maps.context_over_time.tolist() == [0.75, 0.25, 0.0]
    assert maps.target_over_time.tolist() == [0.0, 0.0, 0.5]


def test_maps_have_the_grid_s_axes_and_add_up():
    grid = Grid(t=2, h=3, w=4)
    maps = coverage(RandomMasking(0.5), grid, 100, generator(0))
    assert maps.context.shape == maps.target.shape == grid.shape
    torch.testing.assert_close(maps.context + maps.target, torch.ones(grid.shape, dtype=torch.float64))


@pytest.mark.parametrize("sizes", [{"num_samples": 0}, {"num_samples": 4, "batch_size": 0}])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(ValueError, match="num_samples and batch_size must be at least 1"):
        coverage(RandomMasking(0.5), Grid(h=2, w=2), generator=generator(0), **sizes)

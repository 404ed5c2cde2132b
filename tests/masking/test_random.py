import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.masking import Grid, RandomMasking
from torchjepa.rng import generator
from torchjepa.testing.check_mask import check_mask


@settings(max_examples=80, deadline=None)
@given(
    grid=st.builds(Grid, t=st.integers(1, 4), h=st.integers(1, 12), w=st.integers(1, 12)),
    ratio=st.floats(0.01, 0.99),
    num_targets=st.integers(1, 5),
)
def test_tokens_are_split_or_the_reason_is_given(grid, ratio, num_targets):
    mask = RandomMasking(ratio, num_targets)
    try:
        masks = mask(grid, 3, generator(0))
    except ValueError as error:
        if "every block and the context need at least one" in str(error):
            return
        raise
    everything = torch.cat([masks.context, masks.targets.flatten(1)], dim=1).sort().values
    assert torch.equal(everything, torch.arange(grid.num_tokens).expand(3, -1))
    assert bool((masks.context.diff() > 0).all())
    assert bool((masks.targets.diff() > 0).all())
    assert abs(masks.targets[0].numel() - ratio * grid.num_tokens) <= num_targets / 2 + 1e-9


def test_contract_on_images_and_videos():
    grids = [Grid(h=14, w=14), Grid(t=8, h=7, w=5), Grid(w=50)]
    check_mask(RandomMasking(0.6), grids)
    check_mask(RandomMasking(0.75, num_targets=4), grids, batch_sizes=(1, 16, 128))


def test_every_position_is_hidden_equally_often():
    masks = RandomMasking(0.6)(Grid(t=2, h=3, w=5), 20_000, generator(0))
    share = torch.bincount(masks.targets.flatten(), minlength=30) / 20_000
    assert (share - 0.6).abs().max() < 0.02


@pytest.mark.parametrize("ratio", [0.0, 1.0, -0.1, float("nan")])
def test_ratio_outside_the_open_interval_is_refused(ratio):
    with pytest.raises(ValueError, match="ratio must lie strictly between 0 and 1, got"):
        RandomMasking(ratio)


@pytest.mark.parametrize("num_targets", [0, 1.5, True])
def test_num_targets_must_be_a_positive_integer(num_targets):
    with pytest.raises(ValueError, match="num_targets must be an integer of at least 1"):
        RandomMasking(0.5, num_targets)


@pytest.mark.parametrize(("ratio", "grid"), [(0.1, Grid(h=2, w=2)), (0.9, Grid(h=2, w=2)), (0.5, Grid())])
def test_grids_too_small_for_the_ratio_are_refused(ratio, grid):
    with pytest.raises(ValueError, match=f"on a grid of {grid.num_tokens}; every block and the context"):
        RandomMasking(ratio)(grid, 2, generator(0))


def test_wrong_batch_sizes_are_refused():
    with pytest.raises(ValueError, match="RandomMasking: batch_size"):
        RandomMasking(0.5)(Grid(h=4, w=4), 0, generator(0))

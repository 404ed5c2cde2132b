"""Grids refuse what is no grid; masks and batches cut and move as one."""

import dataclasses

import pytest
import torch

from torchjepa.types import Batch, BatchKeys, Grid, Masks


def test_grid_counts_its_tokens() -> None:
    grid = Grid(t=2, h=3, w=4)
    assert grid.num_tokens == 24
    assert grid.shape == (2, 3, 4)
    assert Grid(w=7).shape == (1, 1, 7)
    assert Grid().num_tokens == 1
    assert Grid(h=2) == Grid(t=1, h=2, w=1)
    assert hash(Grid(h=2)) == hash(Grid(h=2))


@pytest.mark.parametrize("axis", ["t", "h", "w"])
@pytest.mark.parametrize("length", [0, -1, 1.0, True, "3", None])
def test_grid_refuses_what_is_no_length(axis: str, length: object) -> None:
    with pytest.raises(ValueError, match=rf"Grid: {axis} must be an integer of at least 1, got {length!r}"):
        Grid(**{axis: length})  # type: ignore[arg-type]


def test_grid_is_frozen_and_keyword_only() -> None:
    with pytest.raises(TypeError):
        Grid(1, 2, 3)  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        Grid().h = 2  # type: ignore[misc]


def test_masks_are_cut_by_rows() -> None:
    masks = Masks(torch.arange(12).reshape(4, 3), torch.arange(16).reshape(4, 2, 2))
    assert len(masks) == 4
    part = masks[1:3]
    assert len(part) == 2
    assert torch.equal(part.context, masks.context[1:3])
    assert torch.equal(part.targets, masks.targets[1:3])
    assert masks.to("meta").targets.device.type == "meta"


def test_batch_names_its_rows_of_the_global_batch() -> None:
    view = torch.zeros(3, 1, 2, 2)
    alone = Batch((view,), torch.arange(3), torch.full((3,), -1))
    assert len(alone) == alone.num_global == 3
    assert alone.rows == slice(0, 3)
    part = Batch((view, view), torch.arange(3), torch.zeros(3), row_start=5, global_size=8)
    assert part.num_global == 8
    assert part.rows == slice(5, 8)
    moved = part.to("meta")
    assert [x.device.type for x in (*moved.views, moved.ids, moved.labels)] == ["meta"] * 4
    assert (moved.row_start, moved.global_size) == (5, 8)


def test_batch_keys_have_the_length_of_their_indices() -> None:
    assert len(BatchKeys(step=0, epochs=(0, 0), indices=(4, 2), row_start=0, global_size=2)) == 2

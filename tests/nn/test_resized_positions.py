"""Resized sin-cos tables against weights written out tap by tap, and transformers' I-JEPA at another size."""

import json
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.nn.foreign import close
from torchjepa.nn import Predictor, ResizedPositions, ViT, sincos_positions
from torchjepa.nn.position_kinds import resolve_positions
from torchjepa.nn.positions import SinCosPositions
from torchjepa.types import Grid

LENGTHS = st.integers(1, 5)


def cubic(distance, a=-0.75):
    x = abs(distance)
    if x <= 1:
        return (a + 2) * x**3 - (a + 3) * x**2 + 1
    return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0


def weights(length, trained, kind):
    """Row i: how much of each trained place is in place i, whose centre is at (i + 1/2) trained / length - 1/2."""
    out = torch.zeros(length, trained, dtype=torch.float64)
    for i in range(length):
        centre = (i + 0.5) * trained / length - 0.5
        for tap in range(math.floor(centre) - 1, math.floor(centre) + 3):
            weight = cubic(centre - tap) if kind == "cubic" else max(1 - abs(centre - tap), 0)
            out[i, min(max(tap, 0), trained - 1)] += weight
    return out


def slow_resized(grid, trained, dim, layout):
    kind = "cubic" if grid.t == trained.t == 1 else "linear"
    table = sincos_positions(trained, dim, layout=layout).unflatten(0, trained.shape)
    t, h, w = (weights(length, old, kind) for length, old in zip(grid.shape, trained.shape))
    return torch.einsum("thwd,st,yh,xw->syxd", table, t, h, w).reshape(grid.num_tokens, dim)


def resized(grid, trained, dim, layout):
    positions = ResizedPositions(layout, trained.shape)
    return SinCosPositions(dim, positions)(grid, torch.zeros((), dtype=torch.float64))


@given(t=st.integers(2, 4), h=LENGTHS, w=LENGTHS, new=st.tuples(LENGTHS, LENGTHS, LENGTHS))
def test_videos_are_trilinear(t, h, w, new):
    trained = Grid(t=t, h=h, w=w)
    new = [length if old > 1 else 1 for length, old in zip(new, trained.shape)]
    grid = Grid(t=new[0], h=new[1], w=new[2])
    torch.testing.assert_close(resized(grid, trained, 16, "thw"), slow_resized(grid, trained, 16, "thw"))


@given(h=st.integers(2, 6), w=st.integers(2, 6), new_h=st.integers(1, 7), new_w=st.integers(1, 7))
def test_images_are_bicubic(h, w, new_h, new_w):
    trained, grid = Grid(h=h, w=w), Grid(h=new_h, w=new_w)
    torch.testing.assert_close(resized(grid, trained, 12, "wh"), slow_resized(grid, trained, 12, "wh"))


def test_on_the_trained_grid_it_is_the_table():
    grid = Grid(t=2, h=3, w=5)
    assert torch.equal(resized(grid, grid, 18, "thw"), sincos_positions(grid, 18, layout="thw"))


def test_places_stay_within_the_trained_range():
    # A plain layout counts on; a resized one has the outermost places of the trained grid at most.
    rows = resized(Grid(w=9), Grid(w=3), 4, "w")
    first, last = sincos_positions(Grid(w=3), 4, layout="w")[[0, 2]]
    assert (rows[0] - first).norm() < 0.5 * (last - first).norm()
    assert (rows[-1] - last).norm() < 0.5 * (last - first).norm()


@pytest.mark.parametrize(("height", "width"), [(24, 40), (16, 16), (32, 24)])
def test_transformers_ijepa_at_another_size(height, width):
    transformers = pytest.importorskip("transformers")
    config = transformers.IJepaConfig(
        hidden_size=24,
        num_hidden_layers=0,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=24,
        patch_size=8,
    )
    embeddings = transformers.IJepaModel(config).embeddings
    table = sincos_positions(Grid(h=3, w=3), 24).float()
    embeddings.position_embeddings.data.copy_(table)
    images = torch.randn(1, 3, height, width)
    wanted = embeddings(images, interpolate_pos_encoding=True) - embeddings.patch_embeddings(images)
    close(resized(Grid(h=height // 8, w=width // 8), Grid(h=3, w=3), 24, "wh").float(), wanted[0])


@pytest.mark.parametrize("kind", ["vit", "predictor"])
def test_networks_take_them(kind):
    positions = ResizedPositions("thw", (2, 2, 2))
    sizes = {"embed_dim": 12, "depth": 1, "num_heads": 2, "init_std": 0.3}
    ids = torch.tensor([[0, 5, 11], [1, 2, 30]])
    grid = Grid(t=2, h=4, w=4)
    networks = [
        ViT(patch_size=(2, 4, 4), positions=given, **sizes)
        if kind == "vit"
        else Predictor(encoder_dim=12, positions=given, **sizes)
        for given in (positions, "thw")
    ]
    x = torch.randn(2, 3, 4, 16, 16) if kind == "vit" else torch.randn(2, 3, 12)
    given = (x, ids) if kind == "vit" else (x, ids, ids[:, None] + 1, grid)
    ours, plain = (network(*given) for network in networks)
    assert (ours - plain).abs().max() > 1e-2
    again = type(networks[0])(**json.loads(json.dumps(networks[0].config)))
    again.load_state_dict(networks[0].state_dict())
    assert torch.equal(again(*given), ours)


def test_config_survives_json():
    positions = ResizedPositions("thw", (8, 14, 14))
    assert resolve_positions(json.loads(json.dumps(positions.config))) == positions


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("thw", (14, 14)), r"must be three lengths \(t, h, w\).*got \(14, 14\); use"),
        (("thw", (8, 0, 14)), r"each at least 1, got \(8, 0, 14\)"),
        (("xy", (1, 14, 14)), "must name the axes t, h, w"),
    ],
)
def test_settings_that_make_no_sense(arguments, message):
    with pytest.raises(ValueError, match=message):
        ResizedPositions(*arguments)


def test_one_place_cannot_be_spread():
    with pytest.raises(
        ValueError, match=r"nothing to interpolate along 't', one token when trained and 2 now"
    ):
        resized(Grid(t=2, h=2, w=2), Grid(h=2, w=2), 12, "thw")

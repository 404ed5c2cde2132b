"""What the doctor is shown of clips: how the features of a place change with time."""

import torch
from torch import Tensor

from torchjepa.cli.examining import over_time
from torchjepa.evaluation import diagnose
from torchjepa.types import Grid

GRID = Grid(t=6, h=3, w=4)


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moving(num: int = 200, dim: int = 24) -> Tensor:
    """Clips of one thing that is the same all the time and moves over an empty ground."""
    thing, start, way = draw(num, dim), draw(num, seed=1), draw(num, seed=2)
    tokens = 0.1 * draw(num, GRID.num_tokens, dim, seed=3)
    for clip in range(num):
        for step in range(GRID.t):
            place = int(6 * start[clip] + 3 * way[clip] * step) % (GRID.h * GRID.w)
            tokens[clip, step * GRID.h * GRID.w + place] += thing[clip]
    return tokens


def verdict(tokens: Tensor) -> str:
    features = {"time": over_time(tokens, GRID), "encoder": draw(200, 24, seed=4)}
    return diagnose(features).verdict.value


def test_it_is_each_place_of_each_clip_less_what_all_clips_have_there() -> None:
    tokens = draw(3, GRID.num_tokens, 2)
    found = over_time(tokens, GRID)
    assert found.shape == (3 * 12, 6, 2)
    whole = tokens.flatten(0, 1).mean(0)
    for clip in range(3):
        for place in range(12):
            for step in range(6):
                token = step * 12 + place
                own = tokens[clip, token] - sum(tokens[other, token] for other in range(3)) / 3 + whole
                torch.testing.assert_close(found[clip * 12 + place, step], own, atol=1e-6, rtol=1e-6)


def test_something_that_moves_is_no_temporal_collapse_though_the_mean_over_a_frame_stands_still() -> None:
    assert verdict(moving()) == "healthy"


def test_frames_that_are_encoded_alike_are_one() -> None:
    still = moving().unflatten(1, (6, 12))[:, :1].expand(-1, 6, -1, -1).flatten(1, 2)
    assert verdict(still + 0.05 * draw(*still.shape, seed=5)) == "temporal collapse"
    positions = draw(1, GRID.num_tokens, 24, seed=6)  # of which all clips have the same
    assert verdict(still + positions) == "temporal collapse"

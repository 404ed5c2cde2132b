"""The page of a video run: clips, masks over time, coverage and features over time."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.report.material import make_run
from tests.report.test_page import Page
from torchjepa.data import DataSplit, MovingDigitsSource, Preprocessing, read_input
from torchjepa.evaluation import Features
from torchjepa.masking import RandomMasking, TubeMasking
from torchjepa.report import Gatherer, ReportMaterial, load_material, write_report
from torchjepa.report.clips import CONTEXT, NEITHER, TARGET, mask_states, spaced
from torchjepa.report.clips_section import clip_sheets, draw_state, film_strip, map_sheets, mask_section
from torchjepa.report.pictures import BLOCK_COLOURS, enlarge, frame_uri, principal_colours
from torchjepa.types import Batch, Grid, Masks

PREPROCESSING = Preprocessing(
    image_size=32, num_channels=1, mean=(0.1,), std=(0.3,), num_frames=16, frame_rate=8
)
GRID = Grid(t=8, h=4, w=4)
MASKS = (TubeMasking(num_blocks=2, spatial_scale=(0.2, 0.2)), RandomMasking(0.25))
BLOCKS = torch.nn.Conv3d(1, 6, (2, 8, 8), (2, 8, 8)).requires_grad_(False)


def encode(x: torch.Tensor) -> torch.Tensor:
    return BLOCKS(x).flatten(2).transpose(1, 2)


def features(source: MovingDigitsSource) -> Features:
    x = torch.stack([read_input(source, i, PREPROCESSING) for i in range(len(source))])
    return Features(encode(x).mean(1), torch.from_numpy(source.labels), torch.arange(len(source)))


@pytest.fixture(scope="module")
def gatherer() -> Gatherer:
    split = DataSplit(MovingDigitsSource("train", 30), MovingDigitsSource("test", 20), "moving digits")
    return Gatherer(
        split=split,
        preprocessing=PREPROCESSING,
        grid=GRID,
        encode=encode,
        untrained=lambda x: encode(x).square(),
        device="cpu",
    )


def gather(gatherer: Gatherer, num_views: int = 1) -> ReportMaterial:
    split = gatherer.split
    clips = torch.stack([read_input(split.train, i, PREPROCESSING) for i in range(6)])
    views = tuple(clips.roll(view, 0) for view in range(num_views))
    batch = Batch(views, torch.arange(6), torch.zeros(6).long())
    pair = features(split.train), features(split.test)
    return gatherer.gather({"encoder": pair}, batch, masks=MASKS)


@pytest.fixture(scope="module")
def material(gatherer: Gatherer) -> ReportMaterial:
    return gather(gatherer, num_views=2)


def middle_clip(source: MovingDigitsSource, index: int) -> np.ndarray:
    x = read_input(source, index, PREPROCESSING)[0].numpy() * 0.3 + 0.1
    return np.rint(255 * x).astype(np.uint8)[..., None].repeat(3, axis=-1)


def test_clips_masks_and_features_are_those_of_the_run(gatherer, material):
    assert (material.masks, material.views, material.patch_maps) == (None, None, None)
    clips, maps = material.clips, material.clip_maps
    assert clips.clips.shape == (3, 2, 16, 32, 32, 3)
    train = gatherer.split.train
    np.testing.assert_array_equal(clips.clips[1, 0], middle_clip(train, 1))
    np.testing.assert_array_equal(clips.clips[1, 1], middle_clip(train, 0))
    assert clips.states.shape == (2, 3, 8, 4, 4)
    counts = [[(state == kind).sum() for kind in (CONTEXT, TARGET)] for state in clips.states[0]]
    length = MASKS[0].context_length(GRID), MASKS[0].target_length(GRID)
    assert counts == [list(length)] * 3
    for mask, shares in enumerate((clips.context, clips.target)):
        expected = length[mask] / GRID.num_tokens
        np.testing.assert_allclose(shares[0].mean(), expected, atol=1e-6)
    test = gatherer.split.test
    rows = [next(i for i in range(20) if (middle_clip(test, i) == clip).all()) for clip in maps.clips]
    tokens = encode(torch.stack([read_input(test, i, PREPROCESSING) for i in rows])).numpy()
    (wanted,) = principal_colours(tokens.reshape(3, 8, 4, 4, 6))
    np.testing.assert_array_equal(maps.encoder, wanted)
    assert not np.array_equal(maps.untrained, wanted)


def test_neighbours_of_a_clip_are_strips(gatherer, material):
    examples = material.neighbours
    assert examples.queries.shape == (5, 3, 32, 32, 3)
    assert examples.neighbours.shape == (5, 4, 3, 32, 32, 3)
    strips = [middle_clip(gatherer.split.test, i)[[0, 8, 15]] for i in range(20)]
    assert all(any((strip == query).all() for strip in strips) for query in examples.queries)


def test_the_same_run_shows_the_same(gatherer, material):
    again = gather(gatherer, num_views=2)
    np.testing.assert_array_equal(again.clips.states, material.clips.states)
    np.testing.assert_array_equal(again.clip_maps.clips, material.clip_maps.clips)


def test_the_page_is_whole_light_and_drawn_again_alike(material, tmp_path: Path):
    path = write_report(make_run(tmp_path / "run", steps=0), material)
    html = path.read_text(encoding="utf-8")
    page = Page(html)
    assert page.disorder == []
    assert len(page.ids) == len(set(page.ids))
    wanted = ["scores", "curves", "doctor", "clips", "clip_masks", "clip_maps", "neighbours", "run"]
    assert [attrs["id"] for attrs in page.all("section")] == wanted
    assert [attrs["href"] for attrs in page.all("a")] == [f"#{name}" for name in wanted]
    alts = [attrs["alt"] for attrs in page.all("img")]
    assert all(alts)
    assert "Video 3, clip 2, frame 16" in alts
    assert any(re.match(r"Video 2, frames 3.4, mask 2: \d+\s%\scontext", str(alt)) for alt in alts)
    assert "Encoder, clip 1, frames 15\N{EN DASH}16" in alts
    for attrs in page.all("img"):
        kind, data = re.match(r"data:image/(png|jpeg);base64,(.*)", str(attrs["src"])).groups()
        assert Image.open(io.BytesIO(base64.b64decode(data))).format.lower() == kind
    # clips 3 x 2 x 16, masks 3 x 8 x (1 + 2), coverage 4 x 8, features 3 x 8 x 3, neighbours 5 x (1 + 4)
    assert len(alts) == 96 + 72 + 32 + 72 + 25
    assert len(html) < 1_000_000
    assert write_report(path.parent).read_text(encoding="utf-8") == html
    for group in ("clips", "clip_maps"):
        for name, array in vars(getattr(load_material(path.parent), group)).items():
            np.testing.assert_array_equal(array, getattr(getattr(material, group), name))


def test_a_clip_learner_without_masks_has_clips_alone(gatherer, tmp_path: Path):
    material = gather(gatherer)
    bare = replace(
        material.clips, **{k: getattr(material.clips, k)[:0] for k in ("states", "context", "target")}
    )
    page = Page(
        write_report(make_run(tmp_path / "run", steps=0), ReportMaterial(clips=bare)).read_text(
            encoding="utf-8"
        )
    )
    assert [attrs["id"] for attrs in page.all("section")][3:] == ["clips", "neighbours", "run"]
    assert "Video 1, frame 1" in [attrs["alt"] for attrs in page.all("img")]


def test_states_are_those_of_the_masks():
    masks = Masks(torch.tensor([[0, 3], [1, 2]]), torch.tensor([[[5, 7]], [[0, 6]]]))
    states = mask_states(masks, Grid(t=2, h=2, w=2))
    assert states.reshape(2, 8).tolist() == [[1, 0, 0, 1, 0, 2, 0, 2], [2, 1, 1, 0, 0, 0, 2, 0]]


def test_a_frame_is_seen_asked_for_or_grey():
    frame = np.random.default_rng(0).integers(0, 256, (128, 128, 3), dtype=np.uint8)
    drawn = draw_state(frame, np.array([[CONTEXT, TARGET], [NEITHER, CONTEXT]], np.uint8))
    np.testing.assert_array_equal(drawn[:64, :64], frame[:64, :64])
    np.testing.assert_array_equal(drawn[64:, 64:], frame[64:, 64:])
    assert (drawn[64:, :64] == 128).all()
    x, y = 10, 100
    for channel in range(3):
        tinted = 0.35 * frame[x, y].mean() + 0.65 * BLOCK_COLOURS[0][channel]
        assert abs(drawn[x, y, channel] - tinted) <= 0.5


def test_long_clips_are_thinned_and_the_page_says_so(material):
    clips = replace(material.clips, clips=np.repeat(material.clips.clips, 4, axis=2))
    sheets = clip_sheets(clips)
    assert sheets["frames"] == "16 of the 64 frames of each clip"
    alts = [cell["alt"] for cell in sheets["sheets"][0]["rows"][0]["cells"]]
    assert (len(alts), alts[0], alts[-1]) == (16, "Video 1, clip 1, frame 1", "Video 1, clip 1, frame 64")
    long = {name: np.repeat(getattr(clips, name), 3, axis=-3) for name in ("states", "context", "target")}
    section = mask_section(replace(clips, **long))
    assert section is not None
    assert section["left_out"] == "8 of the 24 time steps are shown."
    assert section["coverage"]["sheet"]["head"] == ["1", "4", "8", "11", "14", "17", "21", "24"]
    assert map_sheets(material.clip_maps)["left_out"] == ""


def test_every_column_names_its_frames(material):
    (sheet, *_) = map_sheets(material.clip_maps)["sheets"]
    assert sheet["head"] == [f"{i}\N{EN DASH}{i + 1}" for i in range(1, 16, 2)]
    assert [row["name"] for row in sheet["rows"]] == ["Clip 1", "Encoder", "Untrained"]
    first = material.clip_maps.clips[0]
    assert [cell["image"] for cell in sheet["rows"][0]["cells"]] == [
        frame_uri(enlarge(f, 128)) for f in first[::2]
    ]


def test_a_strip_has_its_frames_side_by_side():
    frames = np.zeros((3, 48, 40, 3), np.uint8) + np.arange(3, dtype=np.uint8)[:, None, None, None]
    data = base64.b64decode(film_strip(frames).removeprefix("data:image/png;base64,"))
    strip = np.asarray(Image.open(io.BytesIO(data)))
    assert strip[0, :, 0].tolist() == [0] * 80 + [128] * 2 + [1] * 80 + [128] * 2 + [2] * 80


def test_the_smaller_of_two_formats_is_taken():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    assert frame_uri(noise).startswith("data:image/jpeg")
    assert frame_uri(np.zeros((64, 64, 3))).startswith("data:image/png")


def test_spaced_indices_keep_both_ends():
    assert spaced(8, 16).tolist() == list(range(8))
    assert spaced(32, 3).tolist() == [0, 16, 31]
    assert spaced(1, 3).tolist() == [0]

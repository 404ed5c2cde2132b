"""Frames at exact times: those that are passed over, reduced, gray or of uneven length."""

from __future__ import annotations

import resource
import tracemalloc
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.data.movies import numbers, write_movie, write_scene
from torchjepa.data import VideoReader, clip_windows


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[np.ndarray]]:
    path = write_scene(tmp_path_factory.mktemp("scene") / "a.mp4", 120, keyframe_every=50)
    with VideoReader(path) as video:
        return path, [frame.pixels for frame in video.frames()]


@given(
    times=st.lists(st.floats(0, 4.79), min_size=1, max_size=20).map(sorted),
    threads=st.sampled_from([1, None]),
)
def test_passing_over_frames_changes_none_that_is_wanted(scene, times, threads) -> None:
    path, frames = scene
    with VideoReader(path, num_threads=threads) as video:
        found = [frame.pixels for frame in video.frames_at(times)]
    assert len(found) == len(times)
    for time, pixels in zip(times, found, strict=True):
        half_a_tick = Fraction(1, 2 * 512)  # of a frame: this file's clock
        assert np.array_equal(pixels, frames[int(Fraction(time) * 25 + half_a_tick)])


def test_frames_that_none_is_made_from_are_passed_over(scene) -> None:
    path, _ = scene
    with VideoReader(path, num_threads=1) as video:
        list(video.frames_at([1.9]))
        assert video.num_decoded < 35  # of the 48 up to there


def test_reading_goes_on_where_times_were_left(scene) -> None:
    path, frames = scene
    with VideoReader(path, num_threads=1) as video:
        assert np.array_equal(next(video.frames_at([0.5, 3.0])).pixels, frames[12])
        rest = [frame.pixels for frame in video.frames_at([0.54, 0.58, 0.62])]
        assert np.array_equal(np.stack(rest), np.stack(frames[13:16]))
        after = [frame.pixels for frame in video.frames()]
        assert np.array_equal(np.stack(after), np.stack(frames[16:]))


@pytest.mark.parametrize(("min_size", "factor"), [(None, 1), (37, 1), (36, 2), (25, 2), (24, 3), (100, 1)])
def test_frames_are_reduced_by_means(scene, min_size, factor) -> None:
    path, frames = scene  # 72 x 96
    with VideoReader(path, min_size=min_size) as video:
        found = next(video.frames()).pixels
    assert found.shape == (72 // factor, 96 // factor, 3)
    means = _luma(frames[0]).reshape(72 // factor, factor, 96 // factor, factor).mean((1, 3))
    assert np.abs(_luma(found) - means).mean() < (
        1e-9 if factor == 1 else 2
    )  # colours are kept at half the size


def _luma(pixels: np.ndarray) -> np.ndarray:
    return pixels @ [0.299, 0.587, 0.114]


def test_gray_files_have_one_channel(tmp_path: Path) -> None:
    levels = [0, 60, 250]
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 16, 24, "gray"
        for level in levels:
            frame = av.VideoFrame.from_ndarray(np.full((16, 24), level, np.uint8), format="gray")
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    with VideoReader(tmp_path / "a.mkv") as video:
        assert video.num_channels == 1
        frames = [frame.pixels for frame in video.frames()]
    assert [frame.shape for frame in frames] == [(16, 24, 1)] * 3
    assert [int(frame.mean()) for frame in frames] == levels


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_frames_of_uneven_length_stay_as_long_as_they_should(tmp_path: Path, ending: str) -> None:
    starts = [0, 1, 2, 10, 11, 30, 31, 32, 33, 50]  # hundredths of a second
    with av.open(str(tmp_path / f"a.{ending}"), "w") as file:
        stream = file.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        stream.options = {"qp": "0", "bf": "3"}
        stream.codec_context.time_base = Fraction(1, 100)
        for number, start in enumerate(starts):
            frame = av.VideoFrame.from_ndarray(np.full((32, 48, 3), 10 * number, np.uint8), format="rgb24")
            frame.pts, frame.time_base = start, Fraction(1, 100)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    times = [hundredth / 100 for hundredth in range(0, 51, 3)]
    with VideoReader(tmp_path / f"a.{ending}") as video:
        found = numbers(np.stack([frame.pixels for frame in video.frames_at(times)]))
    assert found == [max(i for i, start in enumerate(starts) if start <= 3 * j) for j in range(17)]


def test_odd_sizes_are_whole(tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 255, (33, 51, 3), dtype=np.uint8)
    with av.open(str(tmp_path / "a.mkv"), "w") as file:
        stream = file.add_stream("ffv1", rate=5)
        stream.height, stream.width, stream.pix_fmt = 33, 51, "bgr0"
        file.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        file.mux(stream.encode())
    with VideoReader(tmp_path / "a.mkv") as video:
        assert np.array_equal(next(video.frames()).pixels, pixels)


def test_a_clock_as_coarse_as_the_frames_is_no_step_ahead(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.avi", 24, rate=8)  # whose ticks are frames
    with VideoReader(path) as video:
        found = [frame.pixels for frame in video.frames_at((i + 0.5) / 8 for i in range(24))]
    assert numbers(np.stack(found)) == list(range(24))


@pytest.mark.slow
def test_an_hour_is_read_in_windows_and_clips_with_level_memory(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "hour.mp4", 36_000, rate=10, keyframe_every=100)

    def grown(num_windows: int) -> float:
        tracemalloc.start()
        for _ in islice(clip_windows(path, 16, stride=8, frame_rate=4), num_windows):
            pass
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak + resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

    grown(20)
    few = grown(20)
    assert grown(1800) - few < 8e6  # an index of 36,000 packets, and no frames
    with VideoReader(path, num_threads=1) as video:
        assert numbers(np.stack([frame.pixels for frame in video.frames_at([3590.05])])) == [35_900 % 25]
        assert video.num_decoded < 110

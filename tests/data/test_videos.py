"""Frames of real files: the right ones, at the right times, and no more of them than needed."""

import builtins
import tracemalloc
from contextlib import suppress
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.data.movies import numbers, write_movie, write_sound
from torchjepa.data import DataError, DecodeError
from torchjepa.data.videos import VideoReader, clip_windows, find_videos, read_clip


@pytest.mark.parametrize(("ending", "b_frames"), [("mp4", 0), ("mp4", 2), ("mkv", 2), ("mov", 0), ("avi", 0)])
def test_every_frame_comes_in_order_at_its_time(tmp_path: Path, ending: str, b_frames: int) -> None:
    path = write_movie(tmp_path / f"a.{ending}", 20, rate=8, b_frames=b_frames)
    with VideoReader(path) as video:
        assert video.duration == pytest.approx(2.5, abs=0.01)
        frames = list(video.frames())
    assert numbers(np.stack([frame.pixels for frame in frames])) == list(range(20))
    assert [frame.seconds for frame in frames] == pytest.approx(np.arange(20) / 8, abs=1e-3)


@given(times=st.lists(st.floats(0, 3.99), min_size=1, max_size=8), keyframe_every=st.sampled_from([1, 5, 40]))
def test_a_time_gets_the_last_frame_that_began(
    tmp_path_factory: pytest.TempPathFactory, times: list[float], keyframe_every: int
) -> None:
    path = tmp_path_factory.getbasetemp() / f"every{keyframe_every}.mp4"
    if not path.exists():
        write_movie(path, 24, rate=6, keyframe_every=keyframe_every, b_frames=2)
    with VideoReader(path) as video:
        found = [round(frame.seconds * 6) for frame in video.frames_at(sorted(times))]
    half_a_tick = Fraction(1, 2 * 12288)  # of this file's clock
    assert found == [int(6 * (Fraction(time) + half_a_tick)) for time in sorted(times)]


@pytest.mark.parametrize("ending", ["mp4", "mkv"])  # an exact clock and one of whole milliseconds
def test_the_files_own_rate_gives_each_frame_once(tmp_path: Path, ending: str) -> None:
    rate = Fraction(30000, 1001)
    path = write_movie(tmp_path / f"ntsc.{ending}", 24, rate=rate)
    with VideoReader(path) as video:
        found = [frame.pixels for frame in video.frames_at(i / rate for i in range(100))]
    assert numbers(np.stack(found)) == list(range(24))


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_what_lies_between_keyframes_is_not_decoded(tmp_path: Path, ending: str) -> None:
    path = write_movie(tmp_path / f"long.{ending}", 400, rate=10, keyframe_every=10)
    with VideoReader(path) as video:
        found = [round(10 * frame.seconds) for frame in video.frames_at([0, 20.5, 20.6, 39])]
        assert found == [0, 205, 206, 390]
        assert video.num_decoded < 60
    with VideoReader(path) as video:
        list(video.frames_at(i / 5 for i in range(200)))
        assert video.num_decoded == 400


def test_a_clip_is_the_middle_of_the_video(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", 24, rate=8)
    clip = read_clip(path, 6)
    assert numbers(clip.frames) == [9, 10, 11, 12, 13, 14]
    assert clip.seconds.tolist() == pytest.approx([i / 8 for i in range(9, 15)])
    assert clip.frames.shape == (6, 32, 48, 3)
    assert numbers(read_clip(path, 4, frame_rate=4).frames) == [9, 11, 13, 15]
    assert numbers(read_clip(path, 8, frame_rate=16).frames) == [10, 10, 11, 11, 12, 12, 13, 13]
    assert numbers(read_clip(path, 26).frames) == [*range(24), 23, 23]
    assert numbers(read_clip(path, 8, frame_rate=2).frames) == [2, 6, 10, 14, 18, 22, 23, 23]
    small = read_clip(path, 2, transform=lambda pixels: torch.from_numpy(pixels[:4, :4].copy()))
    assert small.frames.shape == (2, 4, 4, 3)


@given(n=st.integers(1, 9), stride=st.integers(1, 12), divisor=st.sampled_from([1, 2, 4, None]))
def test_windows_are_slices_of_the_sampled_frames(
    tmp_path_factory: pytest.TempPathFactory, n: int, stride: int, divisor: int | None
) -> None:
    path = tmp_path_factory.getbasetemp() / "windows.mp4"
    if not path.exists():
        write_movie(path, 23, rate=8)
    rate = None if divisor is None else 8 / divisor
    found = [numbers(clip.frames) for clip in clip_windows(path, n, stride=stride, frame_rate=rate)]
    sampled = list(range(0, 23, divisor or 1))
    expected = [sampled[i : i + n] for i in range(0, len(sampled) - n + 1, stride)]
    if not expected:
        expected = [sampled + sampled[-1:] * (n - len(sampled))]
    elif stride <= n and expected[-1][-1] != sampled[-1]:
        expected.append(sampled[-n:])
    assert found == expected


def test_windows_say_when_their_frames_appear(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", 20, rate=8)
    clips = list(clip_windows(path, 4, stride=2, frame_rate=4))
    assert clips[1].seconds.tolist() == pytest.approx([0.5, 0.75, 1.0, 1.25])
    assert sum(1 for _ in clip_windows(path, 4)) == 5


def test_long_videos_take_no_more_memory_than_short_ones(tmp_path: Path) -> None:
    def peak(num_frames: int) -> int:
        path = write_movie(tmp_path / f"{num_frames}.mp4", num_frames, rate=10, size=(64, 64))
        tracemalloc.start()
        for _ in clip_windows(path, 8, stride=4, frame_rate=10):
            pass
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(600) < peak(60) + 2**16


def test_a_frame_that_stays_is_transformed_once(tmp_path: Path) -> None:
    path, calls = write_movie(tmp_path / "a.mp4", 8, rate=8), []

    def transform(pixels: Any) -> torch.Tensor:
        calls.append(pixels)
        return torch.from_numpy(pixels)

    list(clip_windows(path, 4, stride=1, frame_rate=16, transform=transform))
    assert len(calls) == 8


@pytest.mark.parametrize("turns", [1, 2, 3])
def test_a_turned_camera_gives_upright_frames(tmp_path: Path, turns: int) -> None:
    path = write_movie(tmp_path / "a.mp4", 2)
    with VideoReader(path) as video:
        plain = next(video.frames()).pixels
    # The matrix of the track's header, as 16.16 fixed point: a phone that was turned writes these.
    a, b = {1: (0, 1), 2: (-1, 0), 3: (0, -1)}[turns]
    matrix = np.array([a << 16, b << 16, 0, -b << 16, a << 16, 0, 0, 0, 1 << 30], ">i4").tobytes()
    data = path.read_bytes()
    place = data.index(b"tkhd") + 4 + 40
    path.write_bytes(data[:place] + matrix + data[place + 36 :])
    with VideoReader(path) as video:
        turned = next(video.frames()).pixels
    np.testing.assert_array_equal(turned, np.rot90(plain, -turns))  # clockwise


def test_what_is_no_video_is_said_in_one_line(tmp_path: Path) -> None:
    whole = write_movie(tmp_path / "whole.mp4").read_bytes()
    files = {"empty.mp4": b"", "text.mp4": b"no video" * 99, "cut.mp4": whole[: len(whole) // 2]}
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DecodeError, match=f"{name}.*cannot be decoded as a video") as caught:
            read_clip(tmp_path / name, 2)
        assert "\n" not in str(caught.value)
    with pytest.raises(DecodeError, match=r"sound\.mp4' holds no video, only audio"):
        list(clip_windows(write_sound(tmp_path / "sound.mp4"), 2))
    with pytest.raises(DecodeError, match="No such file"):
        read_clip(tmp_path / "missing.mp4", 2)


def test_damage_in_the_middle_is_an_error_or_all_frames(tmp_path: Path) -> None:
    data = bytearray(write_movie(tmp_path / "a.mp4", 24).read_bytes())
    generator = np.random.default_rng(0)
    for trial in range(20):
        torn = data.copy()
        for place in generator.integers(len(torn), size=20):
            torn[place] ^= int(generator.integers(1, 256))
        (tmp_path / "torn.mp4").write_bytes(torn)
        with suppress(DecodeError):  # and nothing else
            assert read_clip(tmp_path / "torn.mp4", 4).frames.shape[0] == 4, trial


@pytest.mark.parametrize("ending", ["mp4", "mkv"])
def test_sound_that_outlasts_the_picture_does_not_count(tmp_path: Path, ending: str) -> None:
    path = write_movie(tmp_path / f"a.{ending}", 24, rate=8, sound=True)
    with VideoReader(path) as video:
        assert video.duration == pytest.approx(3, abs=0.01)
    assert numbers(read_clip(path, 6, frame_rate=2).frames) == [2, 6, 10, 14, 18, 22]


def test_arguments_are_checked(tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", 2)
    for arguments in (
        {"num_frames": 0},
        {"num_frames": 2, "stride": 0},
        {"num_frames": 2, "frame_rate": 0.0},
    ):
        with pytest.raises(ValueError, match="at least 1"):
            list(clip_windows(path, **arguments))


def test_a_missing_pyav_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any) -> Any:
        if name == "av":
            raise ImportError(name)
        return real(name, *args)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ValueError, match=r"pip install 'torchjepa\[video\]'"):
        VideoReader(tmp_path / "a.mp4")


def test_videos_are_found_at_any_depth(tmp_path: Path) -> None:
    for name in ("b/two.MP4", "a.mov", "b/.hidden.mp4", ".git/three.mp4", "b/notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert find_videos(tmp_path) == ["a.mov", "b/two.MP4"]
    with pytest.raises(DataError, match="not a folder"):
        find_videos(tmp_path / "a.mov")

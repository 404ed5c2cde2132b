"""Videos kept in memory: the frames that the files would give, to the bit."""

from __future__ import annotations

import multiprocessing
import pickle
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tests.data.movies import write_movie, write_scene
from torchjepa.data import DecodeError, VideoFolderSource, VideoTableSource, video_source
from torchjepa.data.video_cache import KeptVideo, VideoCache

NAMES = ("frames/.", "gray.mkv", "scene.mp4", "slow.avi", "uneven.mkv")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """B-frames, a fractional rate, gray pictures, frames of uneven length, a folder of frames: one size for none."""
    folder = tmp_path_factory.mktemp("videos")
    write_scene(folder / "scene.mp4", 40, keyframe_every=12)
    write_movie(folder / "slow.avi", 9, rate=Fraction(30000, 1001))
    (folder / "frames").mkdir()
    for i in range(7):
        Image.fromarray(np.full((20, 24, 3), 30 * i, np.uint8)).save(folder / "frames" / f"{i}.png")
    _write(folder / "uneven.mkv", "libx264", "yuv420p", [0, 40, 50, 300, 310, 700])
    _write(folder / "gray.mkv", "ffv1", "gray", [0, 100, 200, 300])
    return folder


def _write(path: Path, codec: str, pixel_format: str, milliseconds: list[int]) -> None:
    with av.open(str(path), "w") as file:
        stream = file.add_stream(codec, rate=25)
        stream.width, stream.height, stream.pix_fmt = 32, 24, pixel_format
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, time in enumerate(milliseconds):
            frame = av.VideoFrame.from_ndarray(np.full((24, 32, 3), 40 * i, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            file.mux(stream.encode(frame))
        file.mux(stream.encode())


@pytest.fixture(scope="module")
def sources(folder: Path) -> tuple[VideoFolderSource, VideoFolderSource]:
    return VideoFolderSource(folder), VideoFolderSource(folder, cache_bytes=0)


@given(
    index=st.integers(0, len(NAMES) - 1),
    places=st.lists(st.floats(0, 1.2) | st.integers(0, 24).map(lambda i: i / 24), min_size=1, max_size=6),
    number=st.integers(0, 40),
)
def test_clips_are_those_of_the_files(sources, index: int, places: list[float], number: int) -> None:
    kept, read = sources

    def choose(info):
        exact = number / (info.frame_rate or 25)  # a frame's own time, as arithmetic rounds it
        return [np.sort(np.array(places) * info.duration), np.array([exact])]

    for mine, other in zip(kept.read_clips(index, choose), read.read_clips(index, choose), strict=True):
        assert np.array_equal(mine, other)
    assert isinstance(kept._open(index), KeptVideo)
    assert not isinstance(read._open(index), KeptVideo)
    assert kept.num_channels == read.num_channels


def test_each_file_is_decoded_once_by_all_workers_together(folder: Path, monkeypatch) -> None:
    source = VideoFolderSource(folder)
    want = source.read_clips(2, lambda info: [np.array([0.5, 1.0])])

    def fail(*args: object, **kwargs: object) -> None:
        raise AssertionError("decoded again")

    monkeypatch.setattr(video_source, "keep_video", fail)
    monkeypatch.setattr(video_source, "open_video", fail)
    process = multiprocessing.get_context("fork").Process(target=_read_alike, args=(source, want))
    process.start()
    process.join()
    assert process.exitcode == 0


def _read_alike(source: VideoFolderSource, want: list[np.ndarray]) -> None:
    assert np.array_equal(_read(source, 2)[0], want[0])


def _read(source: VideoFolderSource, index: int) -> list[np.ndarray]:
    return source.read_clips(index, lambda info: [np.array([0.5, 1.0])])


def test_what_a_forked_worker_decodes_is_there_for_its_parent(folder: Path) -> None:
    source = VideoFolderSource(folder)
    process = multiprocessing.get_context("fork").Process(target=_read, args=(source, 2))
    process.start()
    process.join()
    assert source._cache is not None
    assert source._cache.get(2) is not None
    assert source._cache.get(3) is None


def test_a_spawned_worker_reads_from_the_disk(sources) -> None:
    kept, read = sources
    copy = pickle.loads(pickle.dumps(kept))
    assert np.array_equal(_read(copy, 2)[0], _read(read, 2)[0])


def test_pieces_of_one_file_share_its_frames(folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "pieces.csv"
    file = folder / "scene.mp4"
    table.write_text(f"path,start,end\n{file},0,0.5\n{file},0.5,1.2\n{folder / 'slow.avi'},,\n")
    kept, read = VideoTableSource(table), VideoTableSource(table, cache_bytes=0)
    for index in range(3):
        assert np.array_equal(_first(kept, index), _first(read, index))
    assert kept._files is not None
    assert kept._files.tolist() == [0, 0, 1]


def _first(source: VideoTableSource, index: int) -> np.ndarray:
    return source.read_clips(index, lambda info: [np.linspace(0, info.duration, 5)])[0]


def test_a_set_that_does_not_fit_is_not_kept(folder: Path) -> None:
    assert VideoFolderSource(folder, cache_bytes=100_000)._cache is None


def test_a_video_longer_than_the_room_is_read_from_its_file(folder: Path, sources) -> None:
    source = VideoFolderSource(folder)
    source._cache = VideoCache(len(source), 200_000)  # less than the scene's 40 frames of 72 x 96 pixels
    for index in range(len(source)):
        assert np.array_equal(_read(source, index)[0], _read(sources[1], index)[0])
    assert [source._cache.get(i) is not None for i in range(len(source))] == [True, True, False, True, True]
    assert source._cache.is_refused(2)


@pytest.mark.parametrize("name", ["cut.mkv", "zeros.mkv", "cut.avi", "zeros.avi"])
def test_a_damaged_file_gives_what_it_gave(tmp_path: Path, name: str) -> None:
    content = bytearray(write_movie(tmp_path / f"whole{name[-4:]}", 60, size=(64, 96)).read_bytes())
    (tmp_path / f"whole{name[-4:]}").unlink()
    half, third = len(content) // 2, len(content) // 3
    if name.startswith("cut"):
        content = content[:half]
    else:
        content[half : half + third] = bytes(third)
    (tmp_path / name).write_bytes(content)
    kept, read = VideoFolderSource(tmp_path), VideoFolderSource(tmp_path, cache_bytes=0)
    for time in (0.0, 0.5, 2.5, 4.0, 7.4):
        mine, other = (_outcome(source, time) for source in (kept, read))
        assert type(mine) is type(other)
        assert isinstance(mine, str) or np.array_equal(mine, other)


def _outcome(source: VideoFolderSource, time: float) -> np.ndarray | str:
    try:
        return source.read_clips(0, lambda info: [np.array([time])])[0]
    except DecodeError as error:
        return str(error)

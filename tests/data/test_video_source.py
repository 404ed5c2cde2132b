"""Videos in folders, in folders of frames and in tables; what is broken; the parts of a split."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.data.movies import numbers, write_movie, write_scene, write_sound
from torchjepa.data import (
    BatchStream,
    ClipTransform,
    DataError,
    DecodeError,
    ErrorLog,
    FolderSource,
    Preprocessing,
    VideoFolderSource,
    VideoReader,
    VideoTableSource,
    index,
    open_data,
    open_video_source,
    open_videos,
    read_clip,
    tasks_of,
    video_files,
)
from torchjepa.types import BatchKeys


def _at(*seconds: float):
    return lambda info: [np.asarray(seconds)]


def _write_frames(folder: Path, num: int, *, ending: str = "png", gray: bool = False) -> Path:
    folder.mkdir(parents=True)
    for i in range(num):
        level = np.full((32, 48) if gray else (32, 48, 3), 10 * i, np.uint8)
        Image.fromarray(level).save(folder / f"frame_{i + 1}.{ending}")  # not padded: 10 comes after 9
    return folder


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("run/a.mp4", "run/deep/b.webm", "jump/c.mkv", "jump/d.AVI", "top.mov"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        codec_by_ending = path.with_suffix(".avi") if name.endswith("AVI") else path
        write_movie(codec_by_ending if path.suffix != ".webm" else path.with_suffix(".mkv"))
        (codec_by_ending if path.suffix != ".webm" else path.with_suffix(".mkv")).rename(path)
    _write_frames(tmp_path / "jump" / "frames", 12)
    (tmp_path / "run" / "poster1.jpg").write_bytes(b"")
    (tmp_path / "run" / "poster2.jpg").write_bytes(b"")
    return tmp_path


def test_files_and_frame_folders_are_found_with_their_classes(folder: Path) -> None:
    source = VideoFolderSource(folder, frame_folder_rate=8)
    names = [source.name(i) for i in range(len(source))]
    assert names == ["jump/c.mkv", "jump/d.AVI", "jump/frames", "run/a.mp4", "run/deep/b.webm", "top.mov"]
    assert source.classes == ("jump", "run")
    assert source.labels.tolist() == [0, 0, 0, 1, 1, -1]
    for i in range(len(source)):
        one, two = source.read_clips(i, lambda info: [np.asarray([0.07, 0.7]), np.asarray([0.2, 0.7, 9.0])])
        last = 11 if i == 2 else 23
        assert (numbers(one), numbers(two)) == ([0, 5], [1, 5, last]), names[i]


def test_folders_read_as_videos_are_told(folder: Path, tmp_path: Path) -> None:
    assert "; 1 of the videos are folders of numbered images, each read as" in open_videos(folder).description
    for name in ("cats", "dogs"):  # a set of images by class looks the same
        _write_frames(tmp_path / "pets" / name, 3)
    assert "; 2 of the videos are folders" in open_videos(tmp_path / "pets").description
    clips = tmp_path / "clips"
    clips.mkdir()
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        write_movie(clips / name)
    assert "folders of" not in open_videos(clips).description


def test_a_top_level_folder_of_frames_is_a_video_without_a_class(tmp_path: Path) -> None:
    for name in "ab":
        _write_frames(tmp_path / name, 3, gray=True)
    source = VideoFolderSource(tmp_path)
    assert [source.name(i) for i in range(2)] == ["a", "b"]
    assert (source.classes, source.labels.tolist(), source.num_channels) == ((), [-1, -1], 1)
    infos = []
    source.read_clips(0, lambda info: [infos.append(info) or np.zeros(1)])
    assert (infos[0].duration, infos[0].frame_rate) == (3 / 25, 25)


def test_a_gif_is_a_video_here(tmp_path: Path) -> None:
    frames = [Image.fromarray(np.full((32, 48, 3), 10 * i, np.uint8)) for i in range(5)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100, loop=0)
    (clip,) = VideoFolderSource(tmp_path).read_clips(0, _at(0.05, 0.15, 0.45))
    assert numbers(clip) == [0, 1, 4]


def test_a_large_folders_index_is_kept(folder: Path, tmp_path_factory, monkeypatch) -> None:
    monkeypatch.setenv("TORCHJEPA_CACHE", str(tmp_path_factory.mktemp("cache")))
    monkeypatch.setattr(index, "_KEPT_FROM", 10)  # of files: the frames count
    for below, _, _ in os.walk(folder):
        os.utime(below, (0, 0))
    monkeypatch.setattr(index, "_TICK", -(10**18))  # as if the folders had not just been made
    first = VideoFolderSource(folder).fingerprint()
    with monkeypatch.context() as patch:
        patch.setattr(index._Walk, "run", lambda walk: pytest.fail("walked again"))
        assert VideoFolderSource(folder).fingerprint() == first
    (folder / "jump" / "frames" / "frame_13.png").write_bytes(b"")
    write_movie(folder / "new.mp4")
    assert VideoFolderSource(folder).fingerprint() != first


def test_broken_files_are_listed_and_replaced(folder: Path) -> None:
    write_sound(folder / "sound.mp4")
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "text.mp4").write_text("no video")
    whole = (folder / "run" / "a.mp4").read_bytes()
    (folder / "torn.mp4").write_bytes(whole[: len(whole) // 2])
    source = open_video_source(folder)
    errors = ErrorLog(None, len(source), max_fraction=0.5)
    stream = BatchStream(
        source, ClipTransform(Preprocessing(16, num_frames=4, frame_rate=8)), seed=0, errors=errors
    )
    batch = next(stream.batches([BatchKeys(0, (0,) * len(source), tuple(range(len(source))), 0, 10)], "cpu"))
    listed = {source.name(i) for i in range(len(source)) if i in errors}
    assert listed == {"sound.mp4", "empty.mp4", "text.mp4", "torn.mp4"}
    assert not {source.name(int(i)) for i in batch.ids} & listed


def test_a_file_without_its_end_gives_what_is_there_and_no_more(tmp_path: Path) -> None:
    path = write_scene(tmp_path / "a.mp4", 100, keyframe_every=10)
    with VideoReader(path) as video:
        frames = [frame.pixels for frame in video.frames()]
    content = path.read_bytes()
    start = content.index(b"moov") - 4  # the index moves to the front, and the pictures' end goes
    size = int.from_bytes(content[start : start + 4])
    mdat = content.index(b"mdat") - 4
    fast = _moved(content, start, size, mdat)
    (tmp_path / "b.mp4").write_bytes(fast[: int(len(fast) * 0.6)])
    source = VideoFolderSource(tmp_path)
    (clip,) = source.read_clips(1, _at(0.1, 0.5))
    assert np.array_equal(clip, np.stack([frames[2], frames[12]]))
    with pytest.raises(DecodeError):
        source.read_clips(1, _at(0.1, 3.5))


def _moved(content: bytes, start: int, size: int, mdat: int) -> bytes:
    # As `-movflags faststart` writes: moov before mdat, the chunk offsets in it raised by its size.
    moov = bytearray(content[start : start + size])
    place = moov.index(b"stco") + 4
    count = int.from_bytes(moov[place + 4 : place + 8])
    for i in range(count):
        at = place + 8 + 4 * i
        moov[at : at + 4] = (int.from_bytes(moov[at : at + 4]) + size).to_bytes(4, "big")
    return content[:mdat] + bytes(moov) + content[mdat:start]


def test_frames_are_reduced_as_they_are_decoded(tmp_path: Path) -> None:
    write_scene(tmp_path / "a.mp4", 10)  # 72 x 96
    (clip,) = VideoFolderSource(tmp_path, min_size=24).read_clips(0, _at(0.1))
    assert clip.shape == (1, 24, 32, 3)


def test_the_table_gives_pieces_and_tasks(folder: Path) -> None:
    table = folder / "list.csv"
    table.write_text(
        "path,start,end,label,label_speed\n"
        "run/a.mp4,0.5,1.5,run,fast\n"
        "run/a.mp4,1.5,,run,\n"
        "jump/frames,,0.2,jump,slow\n"
    )
    source = open_video_source(table)
    assert isinstance(source, VideoTableSource)
    assert [source.name(i) for i in range(3)] == [
        "run/a.mp4[0.5:1.5]",
        "run/a.mp4[1.5:]",
        "jump/frames[0:0.2]",
    ]
    (clip,) = source.read_clips(0, _at(0.0, 0.5, 5.0))
    assert numbers(clip) == [4, 8, 11]  # a piece ends with its own last frame
    (clip,) = source.read_clips(1, _at(0.0, 5.0))
    assert numbers(clip) == [12, 23]
    (clip,) = source.read_clips(2, _at(0.1, 5.0))
    assert numbers(clip) == [2, 4]
    assert (source.classes, source.labels.tolist()) == (("jump", "run"), [1, 1, 0])
    assert tasks_of(source)["speed"].classes == ("fast", "slow")
    assert tasks_of(source)["speed"].labels.tolist() == [0, -1, 1]


def test_pieces_of_a_file_are_held_out_together_and_tasks_follow(folder: Path) -> None:
    rows = [
        f"{name},{start},{start + 1},{kind}"
        for name, kind in (("run/a.mp4", "x"), ("jump/c.mkv", "y"), ("top.mov", "x"))
        for start in (0, 1)
    ]
    (folder / "list.csv").write_text("\n".join(["path,start,end,label_kind", *rows]))
    split = open_videos(folder / "list.csv", holdout=0.5)
    parts = [{part.name(i).split("[")[0] for i in range(len(part))} for part in (split.train, split.test)]
    assert not parts[0] & parts[1]
    assert len(split.train) + len(split.test) == 6
    assert tasks_of(split.train)["kind"].classes == ("x", "y") == split.train.classes


def test_a_test_table_is_judged_by_the_training_tables_classes(folder: Path) -> None:
    (folder / "train.csv").write_text("path,label,label_b\nrun/a.mp4,run,2\ntop.mov,jump,10\n")
    (folder / "test.csv").write_text("path,label,label_b\njump/c.mkv,jump,10\njump/d.AVI,fly,3\n")
    split = open_videos(folder / "train.csv", test_data=folder / "test.csv")
    assert split.test.classes == ("jump", "run")
    assert split.test.labels.tolist() == [0, -1]
    assert tasks_of(split.test)["b"].classes == ("2", "10")
    assert tasks_of(split.test)["b"].labels.tolist() == [1, -1]


def test_folders_called_train_and_test_are_the_split(tmp_path: Path) -> None:
    for part in ("train", "test"):
        for name in "ab":
            (tmp_path / part / name).mkdir(parents=True)
            write_movie(tmp_path / part / name / "0.mp4", 8)
    split = open_videos(tmp_path)
    assert (len(split.train), len(split.test), split.train.classes) == (2, 2, ("a", "b"))
    assert "moving digits" in open_videos(None).description


def test_judging_and_embedding_see_the_same_clip(folder: Path) -> None:
    from torchjepa.data import middle_clip

    preprocessing = Preprocessing(16, num_frames=4, frame_rate=5.0)
    source = VideoFolderSource(folder)
    clip = middle_clip(source, 3, preprocessing)
    own = read_clip(
        folder / "run" / "a.mp4",
        4,
        frame_rate=5.0,
        transform=lambda pixels: preprocessing.resize([pixels])[0],
    )
    assert (clip == own.frames).all()


def test_images_and_videos_are_told_apart(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "cat.png")
    with pytest.raises(DataError, match=r"holds images and no videos.*takes images"):
        open_videos(tmp_path / "images")
    (tmp_path / "videos").mkdir()
    write_movie(tmp_path / "videos" / "a.mp4", 4)
    with pytest.raises(DataError, match=r"holds videos and no images.*takes clips"):
        FolderSource(tmp_path / "videos")
    with pytest.raises(DataError, match=r"images are wanted.*takes clips"):
        open_data(tmp_path / "videos" / "a.mp4")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="holds no videos"):
        open_videos(tmp_path / "nothing")
    with pytest.raises(DataError, match="does not exist"):
        open_videos(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="neither a folder of videos nor a CSV file"):
        open_videos(tmp_path / "videos" / "a.mp4")
    with pytest.raises(ValueError, match="frame_folder_rate"):
        open_videos(tmp_path / "videos", frame_folder_rate=0)


def test_torchcodec_gives_the_same_frames(tmp_path: Path) -> None:
    decoders = video_files._import_torchcodec()
    if decoders is None:
        pytest.skip("torchcodec is not installed, or cannot be loaded")
    for path in (write_scene(tmp_path / "a.mp4", 60), write_movie(tmp_path / "b.mkv", 24, b_frames=2)):
        times = np.linspace(0.01, 2.3, 40)
        with VideoReader(path) as video, video_files.TorchcodecVideo(str(path), decoders) as other:
            assert other.is_plain(None)
            assert other.frame_rate == pytest.approx(video.frame_rate)
            assert other.duration == pytest.approx(video.duration, abs=1e-3)
            for one, two in zip(video.frames_at(times), other.frames_at(times), strict=True):
                assert np.array_equal(one.pixels, two.pixels)
                assert one.seconds == pytest.approx(two.seconds)
            assert not other.is_plain(16)

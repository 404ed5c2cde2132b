"""`jepa embed --model`: any checkpoint, images and videos."""

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch

import torchjepa
from tests.cli.conftest import Jepa
from tests.cli.tiny import write_folder
from tests.data.movies import write_movie, write_sound
from torchjepa.hub import save_encoder

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "official"
IMAGES = ("--model", OFFICIAL / "ijepa.pth.tar", "--num-heads", 2)
VIDEOS = ("--model", "videos")


@pytest.fixture(autouse=True)
def video_model(empty_folder: Path) -> torchjepa.hub.Pretrained:
    """The official toy on clips of the size it was made for; without saying so, 64 x 256 x 256 is assumed."""
    model = torchjepa.load(OFFICIAL / "vjepa2.pt", num_heads=2)
    assert model.preprocessing is not None
    small = dataclasses.replace(model.preprocessing, image_size=24, num_frames=4)
    torchjepa.save(model, empty_folder / "videos", preprocessing=small)
    return dataclasses.replace(model, preprocessing=small)


@pytest.fixture
def movies(empty_folder: Path) -> Path:
    folder = empty_folder / "movies"
    for place in ("run/a.mp4", "run/b.mp4", "walk/c.mkv"):
        (folder / place).parent.mkdir(parents=True, exist_ok=True)
        write_movie(folder / place, 40, rate=8)
    return folder


def read(path: Path) -> tuple[list[str], list[str], torch.Tensor]:
    with np.load(path) as file:
        return file["ids"].tolist(), file["labels"].tolist(), torch.from_numpy(file["features"])


def test_an_official_file_embeds_a_folder_of_images(jepa: Jepa, empty_folder: Path) -> None:
    photos = write_folder(empty_folder / "photos", ("cat", "dog"), each=3)
    done = jepa("embed", *IMAGES, "--data", photos)
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "Wrote the features of 6 images to features.npz"
    assert "target_encoder of ijepa" in done.out
    ids, labels, features = read(empty_folder / "features.npz")
    assert labels == ["cat"] * 3 + ["dog"] * 3
    encoded = torchjepa.load(OFFICIAL / "ijepa.pth.tar", num_heads=2).encode(photos, precision="32")
    assert ids == list(encoded.names)
    torch.testing.assert_close(features, encoded.features, atol=1e-5, rtol=1e-5)


def test_videos_are_embedded_whole_or_in_windows(
    jepa: Jepa, empty_folder: Path, movies: Path, video_model: torchjepa.hub.Pretrained
) -> None:
    done = jepa("embed", *VIDEOS, "--data", movies)
    assert done.out.splitlines()[-1] == "Wrote the features of 3 videos to features.npz"
    ids, labels, features = read(empty_folder / "features.npz")
    assert (ids, labels) == (["run/a.mp4", "run/b.mp4", "walk/c.mkv"], ["run", "run", "walk"])
    torch.testing.assert_close(
        features, video_model.encode(movies, precision="32").features, atol=1e-5, rtol=1e-5
    )

    done = jepa("embed", *VIDEOS, "--data", movies, "--window", 4, "--stride", 8, "--out", "w.npz")
    ids, labels, features = read(empty_folder / "w.npz")
    expected = video_model.encode(movies, precision="32", window=4, stride=8)
    assert expected.seconds is not None
    assert done.out.splitlines()[-1] == f"Wrote the features of {len(ids)} windows of 3 videos to w.npz"
    first = expected.seconds[1].tolist()
    assert ids[1] == f"run/a.mp4@{first[0]:.3f}-{first[1]:.3f}"
    assert labels.count("walk") == len(ids) // 3
    torch.testing.assert_close(features, expected.features, atol=1e-5, rtol=1e-5)


def test_broken_videos_are_listed_and_left_out(jepa: Jepa, empty_folder: Path, movies: Path) -> None:
    write_sound(movies / "walk" / "d.mp4")
    done = jepa("embed", *VIDEOS, "--data", movies, "--max-data-errors", 0.5)
    listed = "features.data_errors.jsonl"
    assert done.out.splitlines()[-1] == (
        f"Wrote the features of 3 videos to features.npz; 1 undecodable files are listed in {listed}"
    )
    assert json.loads((empty_folder / listed).read_text())["name"] == "walk/d.mp4"
    done = jepa("embed", *VIDEOS, "--data", movies)
    assert done.code == 2
    assert "holds no video, only audio" in done.err
    assert not list(empty_folder.glob(".*partial"))


def test_images_meet_a_video_encoder_as_still_clips(jepa: Jepa, empty_folder: Path) -> None:
    photos = write_folder(empty_folder / "photos", ("cat",), each=2)
    done = jepa("embed", *VIDEOS, "--data", photos)
    assert "2 images, each shown as a still clip," in done.out


def test_an_official_file_and_our_folder_of_it_give_the_same(
    jepa: Jepa, empty_folder: Path, movies: Path
) -> None:
    one = empty_folder / "one"
    one.mkdir()
    (movies / "walk" / "c.mkv").rename(one / "c.mkv")
    model = torchjepa.load(OFFICIAL / "vjepa2.pt", num_heads=2)
    assert model.preprocessing is not None
    save_encoder(empty_folder / "own", model.model, pool="mean", preprocessing=model.preprocessing)
    words = ("--data", one, "--window", 4, "--stride", 24)
    assert jepa("embed", "--model", empty_folder / "own", *words, "--out", "own.npz").code == 0
    assert jepa("embed", "--model", OFFICIAL / "vjepa2.pt", "--num-heads", 2, *words).code == 0
    torch.testing.assert_close(read(Path("own.npz"))[2], read(Path("features.npz"))[2], atol=1e-6, rtol=1e-6)


def test_wrong_calls_are_named(jepa: Jepa, empty_folder: Path) -> None:
    photos = write_folder(empty_folder / "photos", ("cat",), each=1)
    assert "a run folder or --model SOURCE" in jepa("embed", "--data", photos).err
    assert "one of the two" in jepa("embed", "runs/digits", *IMAGES, "--data", photos).err
    assert "encoders of videos" in jepa("embed", *IMAGES, "--data", photos, "--window", 4).err
    (empty_folder / "none").mkdir()
    assert "holds nothing to encode" in jepa("embed", *VIDEOS, "--data", "none").err


def test_one_video_is_embedded_window_by_window(
    jepa: Jepa, empty_folder: Path, movies: Path, video_model: torchjepa.hub.Pretrained
) -> None:
    one = movies / "run" / "a.mp4"
    flags = ("--window", 4, "--stride", 2, "--out", "one.npz")
    done = jepa("embed", *VIDEOS, "--data", one, *flags)
    assert done.code == 0, done.err
    ids, labels, features = read(empty_folder / "one.npz")
    assert done.out.splitlines()[-1] == f"Wrote the features of {len(ids)} windows of 1 video to one.npz"
    assert all(name.startswith(f"{one}@") for name in ids)
    assert set(labels) == {""}
    encoded = video_model.encode(one, window=4, stride=2, precision="32")
    torch.testing.assert_close(features, encoded.features, atol=1e-5, rtol=1e-5)


def test_the_pieces_that_a_table_names_are_embedded(
    jepa: Jepa, empty_folder: Path, movies: Path, video_model: torchjepa.hub.Pretrained
) -> None:
    table = movies / "pieces.csv"
    table.write_text("path,start,end,label\nrun/a.mp4,0,2,runs\nwalk/c.mkv,1,4,walks\nrun/a.mp4,,,runs\n")
    done = jepa("embed", *VIDEOS, "--data", table, "--out", "pieces.npz")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "Wrote the features of 3 pieces of videos to pieces.npz"
    ids, labels, features = read(empty_folder / "pieces.npz")
    assert ids == ["run/a.mp4[0:2]", "walk/c.mkv[1:4]", "run/a.mp4"]
    assert labels == ["runs", "walks", "runs"]
    whole = video_model.encode(movies / "run" / "a.mp4", precision="32").features
    torch.testing.assert_close(features[2:], whole, atol=1e-4, rtol=1e-4)
    assert (features[0] - features[2]).abs().max() > 1e-3
    refused = jepa("embed", *VIDEOS, "--data", table, "--window", 4)
    assert "a table says itself what its pieces are" in refused.err

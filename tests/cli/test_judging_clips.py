"""Judging encoders of clips: tasks, the middle frame, bounded pixels, several clips of a video."""

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.data.movies import write_movie
from torchjepa.cli.judged_clips import (
    CLIP_FRAMES,
    CLIP_SIDE,
    SeveralClips,
    hold_middle,
    pixel_limit,
    pixels_of,
)
from torchjepa.cli.judging import Judge, has_labels
from torchjepa.data import DataSplit, Preprocessing, VideoInfo, open_videos, read_input
from torchjepa.data.procedural.moving_digits import MovingDigitsSource
from torchjepa.nn import ViT

PREPROCESSING = Preprocessing(
    image_size=32, num_channels=1, mean=(0.5,), std=(0.25,), num_frames=16, frame_rate=8.0
)


def make_encoder(seed: int = 0) -> nn.Module:
    sizes = {"embed_dim": 8, "depth": 1, "num_heads": 2}
    return ViT(image_size=(16, 32, 32), patch_size=(8, 16, 16), in_channels=1, seed=seed, **sizes)


@pytest.fixture
def judge() -> Judge:
    train, test = MovingDigitsSource("train", 60, seed=0), MovingDigitsSource("test", 30, seed=0)
    return Judge(
        DataSplit(train, test, "moving digits"), PREPROCESSING, "mean", torch.device("cpu"), batch_size=20
    )


def test_every_task_is_judged_against_every_baseline_and_each_side_read_once(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchjepa.evaluation.attentive._LEAST_UPDATES", 1)
    read: Counter[tuple[str, int]] = Counter()
    whole = MovingDigitsSource.read_clips

    def counted(self, index, choose):  # type: ignore[no-untyped-def]
        read[self.split, index] += 1
        return whole(self, index, choose)

    monkeypatch.setattr(MovingDigitsSource, "read_clips", counted)
    encoder, told = make_encoder().train(), []
    judge = replace(judge, probes=("knn", "attentive"))
    scores, features = judge.scores(encoder, make_encoder(1), told.append)
    wanted = ["encoder", "frame", "untrained", "pixels", "majority"]
    for task in ("digit", "speed", "direction"):
        for probe in ("knn", "attentive"):
            names = [s.features for s in scores if (s.task, s.probe) == (task, probe)]
            assert names == [name for name in wanted if (probe, name) != ("attentive", "pixels")]
    assert len(scores) == 3 * (5 + 4)
    assert list(features) == wanted[:4]
    assert len(read) == 90
    assert set(read.values()) == {1}
    assert encoder.training
    assert told == ["The raw-pixel baseline is judged at 8 frames of 16 x 16 pixels."]
    clips = torch.stack([read_input(judge.split.test, i, PREPROCESSING) for i in range(30)])
    still = clips[:, :, 8:9].repeat(1, 1, 16, 1, 1)
    with torch.no_grad():
        torch.testing.assert_close(features["encoder"][1].features, encoder.eval()(clips).mean(dim=1))
        torch.testing.assert_close(features["frame"][1].features, encoder(still).mean(dim=1))


def test_images_have_no_frame_baseline_and_no_attentive_probe_unless_asked(judge: Judge) -> None:
    assert judge._possible_probes(make_encoder(), 3, print) == ("knn", "linear", "attentive")
    stills = replace(judge, preprocessing=replace(PREPROCESSING, num_frames=None, frame_rate=None))
    assert stills._possible_probes(make_encoder(), 2, print) == ("knn", "linear")
    with pytest.raises(ValueError, match="num_clips must be at least 1, and 1 for images, got 2"):
        replace(stills, num_clips=2)


def test_a_full_disk_is_told_before_anything_is_encoded(
    judge: Judge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torchjepa.cli.judging.CACHE_BYTES", 1000)
    monkeypatch.setattr("shutil.disk_usage", lambda folder: type("Usage", (), {"free": 1000}))
    told: list[str] = []
    assert judge._possible_probes(make_encoder(), 3, told.append) == ("knn", "linear")
    assert "jepa eval --probes attentive --samples N" in told[0]
    with pytest.raises(ValueError, match="for the tokens of 90 samples"):
        replace(judge, probes=("attentive",))._possible_probes(make_encoder(), 3, print)


def test_clips_are_encoded_as_many_at_once_as_memory_allows(judge: Judge) -> None:
    free = replace(judge, batch_size=None)
    assert free._batch_size(1) == 500
    large = replace(PREPROCESSING, image_size=224, num_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)
    assert replace(free, preprocessing=large)._batch_size(1) == 6
    assert replace(free, preprocessing=large)._batch_size(4) == 4
    assert replace(free, preprocessing=large)._batch_size(9) == 9


def test_the_middle_frame_is_held() -> None:
    clips = torch.randn(2, 3, 5, 4, 4)
    seen = hold_middle(lambda x: x.clone())(clips)
    for frame in range(5):
        assert torch.equal(seen[:, :, frame], clips[:, :, 2])


def test_pixels_of_clips_are_evenly_spaced_frames_of_bounded_size() -> None:
    few = torch.randn(2, 1, 3, 8, 8)
    assert torch.equal(pixels_of(few)[:, 0], few.flatten(1))
    long = torch.arange(32.0).view(1, 1, 32, 1, 1).expand(2, 3, 32, 48, 48)
    found = pixels_of(long).view(2, CLIP_FRAMES, 3, CLIP_SIDE, CLIP_SIDE)
    expected = torch.arange(2.0, 32, 4)  # the middle of every four
    torch.testing.assert_close(found, expected.view(1, 8, 1, 1, 1).expand_as(found), rtol=1e-5, atol=1e-5)
    assert pixel_limit(replace(PREPROCESSING, num_frames=8, image_size=16)) is None
    assert pixel_limit(replace(PREPROCESSING, num_frames=4, image_size=224)) == "4 frames of 16 x 16 pixels"


def test_several_clips_are_stretches_of_the_video_from_its_beginning_to_its_end() -> None:
    class Times:
        classes, num_channels, labels = ("a",), 1, np.array([0, -1])

        def read_clips(self, index, choose):  # type: ignore[no-untyped-def]
            return choose(VideoInfo(10.0, 25.0))

    def whole(info: VideoInfo) -> list[np.ndarray]:
        return [np.array([0.0, info.duration])]

    def stretches(num: int) -> list[list[float]]:
        clips = SeveralClips(Times(), num, PREPROCESSING)  # type: ignore[arg-type]
        assert clips.labels.tolist() == [0] * num + [-1] * num
        return [clips.read_clips(i, whole)[0].tolist() for i in range(num)]

    assert stretches(1) == [[0, 10]]
    assert stretches(4) == [[0, 2.5], [2.5, 5], [5, 7.5], [7.5, 10]]
    np.testing.assert_allclose(stretches(9), [[i, i + 2] for i in range(9)])  # a clip lasts 2 seconds


def test_several_clips_of_files_are_averaged(tmp_path: Path) -> None:
    for i in range(8):
        folder = tmp_path / ("train" if i < 4 else "test") / "ab"[i % 2]
        folder.mkdir(exist_ok=True, parents=True)
        write_movie(folder / f"{i}.mp4", 24 * (1 + i % 2), size=(32, 32))  # 3 or 6 seconds
    split = open_videos(str(tmp_path))
    assert has_labels(split)
    judge = Judge(split, PREPROCESSING, "mean", torch.device("cpu"), num_clips=3, probes=("knn",))

    class Gray(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x[..., -1, -1].mT

    scores, features = judge.scores(Gray(), Gray(), lambda text: None)
    train = features["encoder"][0]
    assert train.ids.tolist() == [0, 1, 2, 3]
    # Frame i of a movie is of gray level 10 i (mod 250), 8 a second; a clip of 2 seconds fits 1.5 or 3 times.
    for row, label in enumerate(train.labels.tolist()):
        starts = (0, 4, 8) if split.train.classes[label] == "a" else (0, 16, 32)
        levels = [10 * (start + i) % 250 / 255 for start in starts for i in range(16)]
        assert train.features[row].item() == pytest.approx((np.mean(levels) - 0.5) / 0.25, abs=0.03)
    assert {s.features for s in scores} == {"encoder", "frame", "untrained", "pixels", "majority"}

"""Clips of videos: which frames, one box for all of them, and the same whatever loads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from torchjepa.data import (
    BatchStream,
    ClipTransform,
    DecodeError,
    ErrorLog,
    EvalStream,
    Preprocessing,
    SampleKeys,
    VideoInfo,
    middle_clip,
    read_input,
)
from torchjepa.types import BatchKeys

_PREPROCESSING = Preprocessing(16, num_frames=4, frame_rate=4.0)


class Painted:
    """Videos of 20 frames a second whose frame i is of gray level i, brighter from left to right."""

    classes = ("a", "b")
    num_channels = 3

    def __init__(self, durations: Sequence[float], broken: Sequence[int] = (), height: int = 24) -> None:
        self.durations, self.broken, self.height = durations, broken, height
        self.labels = np.arange(len(durations)) % 2
        self.asked: list[np.ndarray] = []

    def __len__(self) -> int:
        return len(self.durations)

    def name(self, index: int) -> str:
        return f"video {index}"

    def fingerprint(self) -> dict[str, object]:
        return {}

    def read_clips(self, index, choose):
        if index in self.broken:
            raise DecodeError("it is cut off")
        self.asked = list(choose(VideoInfo(self.durations[index], 20.0)))
        last = round(self.durations[index] * 20) - 1
        numbers = [np.minimum((times * 20 + 1e-6).astype(int), last) for times in self.asked]
        ramp = np.linspace(0, 50, 36)[None, None, :, None]
        shape = (1, self.height, 36, 3)
        return [
            np.broadcast_to(each[:, None, None, None] + ramp, (len(each), *shape[1:])).astype(np.uint8)
            for each in numbers
        ]


def _keys(seed: int = 0, epoch: int = 0, index: int = 0) -> SampleKeys:
    return SampleKeys(seed, np.asarray([epoch]), np.asarray([index]))


def _times(transform: ClipTransform, duration: float, rate: float | None = 20.0, seed: int = 0):
    return transform.times(VideoInfo(duration, rate), _keys(seed))


def test_a_clip_has_its_rate_and_lies_within_the_video() -> None:
    starts = []
    for seed in range(200):
        (times,) = _times(ClipTransform(_PREPROCESSING), 10.0, seed=seed)
        assert np.diff(times) == pytest.approx(0.25)
        assert times[0] >= 0.125
        assert times[-1] <= 10 - 0.125
        starts.append(times[0])
    assert min(starts) < 0.6
    assert max(starts) > 8.5  # of 9.125
    assert np.mean(starts) == pytest.approx(4.6, abs=0.6)


def test_without_a_rate_each_frame_of_the_file_comes_once() -> None:
    transform = ClipTransform(replace(_PREPROCESSING, frame_rate=None))
    first = set()
    for seed in range(200):
        (times,) = _times(transform, 0.5, seed=seed)
        numbers = times * 20 - 0.5  # the middles of frames
        assert numbers == pytest.approx(np.round(numbers))
        assert np.diff(numbers) == pytest.approx(1)
        first.add(round(numbers[0]))
    assert first == set(range(7))  # 10 frames have 7 places for 4


def test_a_jitter_varies_the_rate_both_ways() -> None:
    transform = ClipTransform(_PREPROCESSING, rate_jitter=0.5)
    rates = [1 / np.diff(_times(transform, 10.0, seed=seed)[0])[0] for seed in range(300)]
    assert 4 / 1.5 <= min(rates) < 2.8
    assert 5.8 < max(rates) <= 6
    assert np.mean(np.log(rates)) == pytest.approx(np.log(4), abs=0.04)


def test_several_clips_of_a_video_are_spread_over_it() -> None:
    transform = ClipTransform(_PREPROCESSING, num_clips=3)
    for seed in range(20):
        starts = [times[0] - 0.125 for times in _times(transform, 10.0, seed=seed)]
        assert [int(start / 3) for start in starts] == [0, 1, 2]  # thirds of the room of 9 s


def test_short_videos_are_held_or_refused() -> None:
    source = Painted([0.5])
    (clip,) = ClipTransform(_PREPROCESSING, scale=(1, 1)).read(source, 0, _keys())
    assert source.asked[0] == pytest.approx([0.125, 0.375, 0.625, 0.875])
    assert torch.equal(clip[0, 0, 2], clip[0, 0, 3])
    assert not torch.equal(clip[0, 0, 0], clip[0, 0, 1])
    with pytest.raises(DecodeError, match=r"too short: it lasts 0\.50 s, a clip of 4 frames 1\.00 s"):
        ClipTransform(_PREPROCESSING, short="refuse").read(source, 0, _keys())
    ClipTransform(_PREPROCESSING, short="refuse").read(Painted([1.0]), 0, _keys())


def test_refused_videos_are_listed_and_replaced() -> None:
    source, errors = Painted([0.5, 10, 10, 10]), ErrorLog(None, 4, max_fraction=0.5)
    stream = BatchStream(source, ClipTransform(_PREPROCESSING, short="refuse"), seed=0, errors=errors)
    batch = next(stream.batches([BatchKeys(0, (0,) * 4, (0, 1, 2, 3), 0, 4)], "cpu"))
    assert 0 in errors
    assert 0 not in batch.ids
    assert batch.ids[1:].tolist() == [1, 2, 3]


def test_a_box_and_a_mirror_image_hold_for_a_whole_clip() -> None:
    transform, mirrored = ClipTransform(_PREPROCESSING), []
    for seed in range(20):
        (crops,) = transform.read(Painted([10.0]), 0, _keys(seed))
        frames = crops[0, 0, :, :, :, 0].int()
        assert (
            (frames[1:] - frames[:-1]) - 5
        ).abs().max() <= 1  # 5 levels in a quarter of a second, everywhere
        mirrored.append(bool(frames[0, 8, 0] > frames[0, 8, -1]))
    assert 4 < sum(mirrored) < 16


@pytest.mark.parametrize("num_clips", [1, 2])
def test_any_number_of_workers_gives_the_same_clips(num_clips: int) -> None:
    transform = ClipTransform(_PREPROCESSING, num_clips=num_clips, rate_jitter=0.3)
    keys = [BatchKeys(step, (step,) * 3, (step, 2, 3), 0, 3) for step in range(3)]
    runs = []
    for num_workers in (0, 2):
        errors = ErrorLog(None, 5, max_fraction=1)
        stream = BatchStream(
            Painted([3, 10, 4, 5, 6], broken=[1]), transform, seed=3, num_workers=num_workers, errors=errors
        )
        runs.append(list(stream.batches(keys, "cpu")))
    for one, other in zip(*runs, strict=True):
        assert len(one.views) == num_clips
        assert one.views[0].shape == (3, 3, 4, 16, 16)
        assert torch.equal(one.ids, other.ids)
        assert all(torch.equal(a, b) for a, b in zip(one.views, other.views, strict=True))
    alone = next(stream.batches([BatchKeys(0, (0,), (3,), 0, 1)], "cpu"))
    assert torch.equal(alone.views[0][0], runs[0][0].views[0][2])  # whatever batch it comes in
    assert not torch.equal(runs[0][0].views[0][2], runs[0][1].views[0][2])  # another epoch


def test_judging_takes_the_middle_of_each_video() -> None:
    source = Painted([10, 2, 0.5, 4], broken=[3])
    errors = ErrorLog(None, 4, max_fraction=0.5)
    (batch,) = list(EvalStream(source, _PREPROCESSING, errors=errors))
    assert batch.views[0].shape == (3, 3, 4, 16, 16)
    assert batch.ids.tolist() == [0, 1, 2]
    assert 3 in errors
    assert torch.equal(batch.views[0][1], read_input(source, 1, _PREPROCESSING))
    clip = middle_clip(source, 0, _PREPROCESSING)
    assert source.asked[0] == pytest.approx([4.625, 4.875, 5.125, 5.375])
    (frames,) = source.read_clips(0, lambda info: [np.asarray([4.625, 4.875, 5.125, 5.375])])
    by_hand = torch.stack([_PREPROCESSING(frame) for frame in frames], dim=1)
    torch.testing.assert_close(batch.views[0][0], by_hand, atol=0, rtol=0)
    assert clip.shape == (4, 16, 16, 3)


def test_a_batch_of_nothing_but_broken_videos_is_left_out() -> None:
    errors = ErrorLog(None, 2, max_fraction=1)
    assert list(EvalStream(Painted([1, 1], broken=[0, 1]), _PREPROCESSING, errors=errors)) == []


@pytest.mark.parametrize("own", [1, 3])
@pytest.mark.parametrize("wanted", [1, 3])
def test_gray_and_colour_change_into_each_other(own: int, wanted: int) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (4, 24, 36, own), dtype=np.uint8)
    numbers = (0.5,) * wanted
    preprocessing = Preprocessing(16, wanted, numbers, numbers, num_frames=4)
    clip = preprocessing.resize_clip(frames)
    assert torch.equal(clip, torch.stack([preprocessing.resize([frame])[0] for frame in frames]))
    transform = ClipTransform(preprocessing)
    assert transform.crop([[frames]], _keys())[0].shape == (1, 1, 4, 16, 16, wanted)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_clips": 0}, "num_clips"),
        ({"rate_jitter": -0.1}, "rate_jitter"),
        ({"short": "drop"}, "'hold' or 'refuse', got"),
        ({"scale": (0, 1)}, "scale"),
        ({"preprocessing": Preprocessing(16)}, "num_frames"),
    ],
)
def test_wrong_arguments_are_named(arguments, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClipTransform(**{"preprocessing": _PREPROCESSING, **arguments})

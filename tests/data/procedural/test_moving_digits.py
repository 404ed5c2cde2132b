import csv
import runpy
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import KNeighborsClassifier

from torchjepa.data.procedural.digits import digits_of
from torchjepa.data.procedural.moving_digits import MovingDigitsSource
from torchjepa.data.source import VideoInfo
from torchjepa.data.videos import read_clip

EXAMPLE = Path(__file__).parents[3] / "examples" / "moving_digits_to_mp4.py"
STEPS = {
    "down": (1, 0),
    "down-left": (1, -1),
    "down-right": (1, 1),
    "left": (0, -1),
    "right": (0, 1),
    "up": (-1, 0),
    "up-left": (-1, -1),
    "up-right": (-1, 1),
}


def all_frames(source):
    return np.stack([source.frames(index) for index in range(len(source))])


def centres(frames):
    """Centre of the ink of frames `[t, h, w, 1]`, in pixels, as (row, column)."""
    ink = frames[..., 0].astype(np.float64)
    rows, columns = np.arange(32) + 0.5, np.arange(32) + 0.5
    mass = ink.sum((1, 2))
    return np.stack([(ink.sum(2) @ rows) / mass, (ink.sum(1) @ columns) / mass], axis=1)


def walk(place, velocity, room, seconds):
    """Where a ball is that goes back and forth between 0 and room, by very small steps."""
    for _ in range(round(abs(seconds) * 4000)):
        place += np.sign(seconds) * velocity / 4000
        if place < 0 or place > room:
            place, velocity = min(max(place, 0), room), -velocity
    return place


def test_videos_are_keyed_by_split_seed_and_place_alone():
    few, many = MovingDigitsSource("train", 20), MovingDigitsSource("train", 50)
    assert np.array_equal(all_frames(few), all_frames(many)[:20])
    for name, task in few.tasks.items():
        assert np.array_equal(task.labels, many.tasks[name].labels[:20])
    assert not np.array_equal(all_frames(few), all_frames(MovingDigitsSource("test", 20)))
    assert not np.array_equal(all_frames(few), all_frames(MovingDigitsSource("train", 20, seed=1)))


def test_the_set_says_what_it_is():
    source = MovingDigitsSource("test", 400)
    assert (source.frames(3).shape, source.frames(3).dtype) == ((16, 32, 32, 1), np.uint8)
    assert (len(source), source.num_channels, source.name(17)) == (400, 1, "test/17")
    assert source.classes == source.tasks["digit"].classes
    assert source.labels is source.tasks["digit"].labels
    for task in source.tasks.values():
        assert list(task.classes) == sorted(task.classes)
        assert set(task.labels.tolist()) == set(range(len(task.classes)))
    assert {name: len(task.classes) for name, task in source.tasks.items()} == {
        "digit": 10,
        "direction": 8,
        "speed": 3,
    }
    assert source.fingerprint() == {
        "kind": "moving digits",
        "split": "test",
        "num_samples": 400,
        "seed": 0,
        "bar": True,
    }
    _, targets = digits_of("test")
    assert np.bincount(source.labels).argmin() in targets


@pytest.mark.parametrize("index", range(6))
def test_a_digit_moves_as_its_labels_say_and_bounces_off_the_edges(index):
    source = MovingDigitsSource("train", 40, bar=False)
    frames = source.frames(index)
    direction, speed = (
        source.tasks[name].classes[source.tasks[name].labels[index]] for name in ("direction", "speed")
    )
    step = np.asarray(STEPS[direction]) / np.linalg.norm(STEPS[direction]) * int(speed)
    size = 10 + 4 * source._places[index, 0]
    middle = source._places[index, 2:] * (32 - size)
    seen = centres(frames)
    for number in range(16):
        seconds = (number - 8) / 8
        expected = [walk(place, v, 32 - size, seconds) for place, v in zip(middle, step)]
        # The ink's centre keeps its distance from the corner, but for what an edge cuts off.
        assert seen[number] - seen[8] == pytest.approx(np.asarray(expected) - middle, abs=0.15)


def test_the_digit_passes_behind_a_black_bar():
    bare, barred = (MovingDigitsSource("train", 30, bar=bar) for bar in (False, True))
    widths, lying = 3 + 3 * barred._bars[:, 0], barred._bars[:, 2] >= 0.5
    starts = barred._bars[:, 1] * (32 - widths)
    for index in range(30):
        before, after = (each.frames(index)[..., 0].astype(float) for each in (bare, barred))
        if lying[index]:
            before, after = before.transpose(0, 2, 1), after.transpose(0, 2, 1)
        for column in range(32):
            start, end = starts[index], starts[index] + widths[index]
            shown = sum(not start <= column + (i + 0.5) / 100 < end for i in range(100)) / 100
            assert np.abs(after[:, :, column] - shown * before[:, :, column]).max() < 4
    assert 0 < lying.sum() < 30


def test_one_frame_says_nothing_about_motion_and_two_say_all():
    train, test = MovingDigitsSource("train", 1500, bar=False), MovingDigitsSource("test", 500, bar=False)
    seen = [np.stack([centres(source.frames(i)) for i in range(len(source))]) for source in (train, test)]
    for name, task in train.tasks.items():
        if name == "digit":
            continue
        chance = 1 / len(task.classes)
        labels = task.labels, test.tasks[name].labels
        scores = []
        for a, b in ([each[:, 8] for each in seen], [each[:, 9] - each[:, 8] for each in seen]):
            scores.append(KNeighborsClassifier(20).fit(a, labels[0]).score(b, labels[1]))
        assert scores[0] < chance + 0.06
        assert scores[1] > 0.85


def test_a_clip_shows_the_frames_on_the_screen_at_its_times():
    source = MovingDigitsSource("train", 3)
    infos, frames = [], source.frames(1)

    def choose(info):
        infos.append(info)
        return [np.array([0.0, 0.1249, 0.125, 1.0, 1.99]), np.array([0.5, 3.0])]

    first, second = source.read_clips(1, choose)
    assert infos == [VideoInfo(2.0, 8.0)]
    assert np.array_equal(first, frames[[0, 0, 1, 8, 15]])
    assert np.array_equal(second, frames[[4, 15]])
    (whole,) = source.read_clips(1, lambda info: [np.arange(16) / info.frame_rate])
    assert np.array_equal(whole, frames)


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="split must be 'train' or 'test', got 'val'"):
        MovingDigitsSource("val")
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        MovingDigitsSource("train", 0)


def test_the_example_writes_real_videos_and_their_labels(tmp_path):
    source = MovingDigitsSource("test", 3)
    runpy.run_path(str(EXAMPLE))["write_videos"](source, tmp_path / "test.csv")
    with (tmp_path / "test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3
    for index, row in enumerate(rows):
        for name, task in source.tasks.items():
            assert row[f"label_{name}"] == task.classes[task.labels[index]]
        clip = read_clip(tmp_path / row["path"], 16)
        difference = clip.frames.numpy().astype(int) - source.frames(index)
        assert np.abs(difference).mean() < 3

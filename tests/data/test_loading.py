import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from PIL import Image

from torchjepa.data import (
    ArraySource,
    BatchStream,
    DataError,
    DecodeError,
    ErrorLog,
    EvalStream,
    FolderSource,
    MaskedViewTransform,
    MultiCropTransform,
    Preprocessing,
    TwoViewTransform,
)
from torchjepa.types import BatchKeys

PREPROCESSING = Preprocessing(16)


def array_source(num=40):
    images = np.random.default_rng(0).integers(0, 256, (num, 20, 20, 3), dtype=np.uint8)
    return ArraySource({"x": images, "y": np.arange(num) % 3})


def keys(num_steps=5, size=6, num=40):
    for step in range(num_steps):
        places = [step * size + row for row in range(size)]
        epochs, indices = tuple(p // num for p in places), tuple(p * 7 % num for p in places)
        yield BatchKeys(step, epochs, indices, 12, 2 * size)


def stream(source, num_workers=0, errors=None, transform=None):
    transform = TwoViewTransform(PREPROCESSING) if transform is None else transform
    errors = ErrorLog(None, len(source)) if errors is None else errors
    return BatchStream(source, transform, seed=3, num_workers=num_workers, errors=errors)


class Broken:
    """A source whose listed samples cannot be decoded, or fail in some other way."""

    def __init__(self, source, broken, error=DecodeError):
        self.source, self.broken, self.error = source, set(broken), error
        self.classes, self.labels, self.num_channels = source.classes, source.labels, source.num_channels

    def __len__(self):
        return len(self.source)

    def name(self, index):
        return f"image-{index}"

    def read(self, index):
        if index in self.broken:
            raise self.error("it is broken")
        return self.source.read(index)

    def fingerprint(self):
        return {}


def assert_same(first, second):
    first, second = list(first), list(second)
    assert len(first) == len(second)
    for one, two in zip(first, second):
        assert all(torch.equal(a, b) for a, b in zip(one.views, two.views, strict=True))
        assert torch.equal(one.ids, two.ids)
        assert torch.equal(one.labels, two.labels)
        assert (one.row_start, one.global_size) == (two.row_start, two.global_size)


@pytest.mark.parametrize("broken", [[], [7, 14]])
def test_any_number_of_workers_gives_the_same_batches(broken):
    source = Broken(array_source(), broken)
    alone, helped = ErrorLog(None, 40, 0.5), ErrorLog(None, 40, 0.5)
    assert_same(
        stream(source, errors=alone).batches(keys(12), "cpu"),
        stream(source, num_workers=2, errors=helped).batches(keys(12), "cpu"),
    )
    assert len(alone) == len(helped) == len(broken)


def test_views_of_several_sizes_cross_from_workers():
    transform, source = MultiCropTransform(PREPROCESSING, num_local=3, local_size=8), array_source()
    batches = list(stream(source, 2, transform=transform).batches(keys(), "cpu"))
    assert [view.shape[-1] for view in batches[0].views] == [16, 16, 8, 8, 8]
    assert_same(batches, stream(source, transform=transform).batches(keys(), "cpu"))


def test_workers_share_a_folders_decoded_images(tmp_path):
    for index in range(12):
        Image.effect_noise((20, 20), 90).save(tmp_path / f"{index:02}.png")
    source = FolderSource(tmp_path)
    steps = list(keys(2, num=12))
    first = list(stream(source, num_workers=2).batches(steps, "cpu"))
    for path in tmp_path.iterdir():
        path.unlink()
    assert_same(first, stream(source).batches(steps, "cpu"))


def test_workers_leave_torchs_global_generator_alone():
    torch.manual_seed(0)
    before = torch.get_rng_state()
    for num_workers in (0, 2):
        list(stream(array_source(), num_workers).batches(keys(2), "cpu"))
        assert torch.equal(torch.get_rng_state(), before)


def test_batches_carry_ids_labels_and_their_place():
    batch = next(stream(array_source(), transform=MaskedViewTransform(PREPROCESSING)).batches(keys(), "cpu"))
    assert batch.ids.tolist() == [0, 7, 14, 21, 28, 35]
    assert batch.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert (batch.row_start, batch.global_size, len(batch)) == (12, 12, 6)
    assert [view.shape for view in batch.views] == [(6, 3, 16, 16)]


def test_an_undecodable_sample_is_replaced_by_a_keyed_draw_and_listed(tmp_path):
    path = tmp_path / "data_errors.jsonl"
    source = Broken(array_source(), [14])
    runs = [list(stream(source, errors=ErrorLog(path, 40, 0.1)).batches(keys(14), "cpu")) for _ in range(2)]
    assert_same(*runs)
    replaced = [batch.ids[place].item() for batch, place in ((runs[0][0], 2), (runs[0][7], 0))]
    assert 14 not in torch.cat([batch.ids for batch in runs[0]]).tolist()
    assert runs[0][0].labels[2] == replaced[0] % 3
    assert path.read_text().count("\n") == 1
    assert '"id": 14, "name": "image-14", "error": "it is broken"' in path.read_text()


@pytest.mark.parametrize("num_workers", [0, 1])
def test_too_many_undecodable_samples_stop_the_run(num_workers):
    source = Broken(array_source(), [0, 7])
    with pytest.raises(DataError, match=r"^1 of the 40 samples cannot be decoded.*image-0 \(it is broken\)"):
        list(stream(source, num_workers).batches(keys(), "cpu"))


def test_a_set_of_nothing_but_broken_files_is_refused_at_once():
    source = Broken(array_source(), range(40))
    with pytest.raises(
        DataError, match=r"image-0 cannot be decoded \(it is broken\), nor can 15 samples drawn"
    ):
        list(stream(source, errors=ErrorLog(None, 40, 1.0)).batches(keys(), "cpu"))


def test_an_error_about_the_data_crosses_from_a_worker_as_one_line():
    source = Broken(array_source(), [0], ValueError)
    with pytest.raises(DataError) as caught:
        list(stream(source, 1).batches(keys(), "cpu"))
    assert str(caught.value) == "it is broken"


def test_any_other_failure_of_a_worker_is_one_message_with_its_traceback_as_a_note():
    source = Broken(array_source(), [0], KeyError)
    with pytest.raises(RuntimeError) as caught:
        list(stream(source, 1).batches(keys(), "cpu"))
    assert str(caught.value) == "a data worker failed: KeyError: 'it is broken'"
    assert "Traceback" in caught.value.__notes__[0]


class Deadly(Broken):
    def read(self, index):
        if index in self.broken:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.source.read(index)


def test_a_killed_worker_is_explained():
    batches = stream(Deadly(array_source(), [35]), 1).batches(keys(), "cpu")
    with pytest.raises(RuntimeError, match=r"data worker was killed.*use fewer workers or a smaller batch"):
        next(batches)


def test_closing_the_iterator_ends_the_workers_whatever_handler_the_parent_has():
    others = {child.pid for child in multiprocessing.active_children()}  # that an earlier test left to end

    def workers():
        return [child for child in multiprocessing.active_children() if child.pid not in others]

    previous = signal.signal(signal.SIGTERM, lambda *_: None)
    try:
        batches = stream(array_source(), 2).batches(keys(), "cpu")
        next(batches)
        assert len(workers()) == 2
        start = time.monotonic()
        batches.close()
        assert not workers()
        assert time.monotonic() - start < 4  # not by running into torch's limit of five seconds
    finally:
        signal.signal(signal.SIGTERM, previous)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_group_leaves_the_workers_to_their_parent(number):
    steps = list(keys(40, num=400))
    batches = stream(array_source(400), 1).batches(steps, "cpu")
    first = next(batches)
    for child in multiprocessing.active_children():
        os.kill(child.pid, number)
    assert_same([first, *batches], stream(array_source(400)).batches(steps, "cpu"))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_judging_sees_every_decodable_sample_once_in_order(num_workers):
    source = Broken(array_source(), [3, 8, 9, 10, 11])
    errors = ErrorLog(None, 40, 0.2)
    judged = EvalStream(source, PREPROCESSING, batch_size=4, num_workers=num_workers, errors=errors)
    batches = list(judged)
    assert len(judged) == 10
    assert len(batches) == 9  # one is empty
    ids = torch.cat([batch.ids for batch in batches])
    assert ids.tolist() == [index for index in range(40) if index not in source.broken]
    assert torch.equal(torch.cat([batch.labels for batch in batches]), ids % 3)
    assert torch.equal(batches[1].views[0][0], PREPROCESSING(source.read(4)))
    assert len(errors) == 5
    assert_same(batches, judged)


def test_wrong_arguments_are_named():
    source = array_source()
    with pytest.raises(ValueError, match="num_workers must be at least 0, got -1"):
        stream(source, -1)
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        EvalStream(source, PREPROCESSING, batch_size=0, errors=ErrorLog(None, 40))

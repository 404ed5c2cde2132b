import os

import numpy as np
import pytest
from PIL import Image

from torchjepa.data import DataError, DigitsSource, FolderSource, open_data


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(root / name)
    return str(root)


def names(source):
    return [source.name(index) for index in range(len(source))]


def class_of(source, index):
    return source.classes[source.labels[index]] if source.labels[index] >= 0 else None


def test_without_data_the_digits_are_the_same_for_every_seed():
    split = open_data(None, seed=5)
    assert (len(split.train), len(split.test)) == (20_000, 4_000)
    assert np.array_equal(split.train.read(3), DigitsSource("train", 4).read(3))
    assert split.description == "embedded digits: 20000 training, 4000 test canvases"


@pytest.mark.parametrize("test", ["test", "val", "valid", "validation", "TEST"])
def test_a_folder_of_train_and_test_is_that_split(tmp_path, test):
    data = fill(tmp_path, "train/cat/a.png", "train/dog/b.png", f"{test}/cat/c.png", f"{test}/dog/d.png")
    split = open_data(data)
    assert split.train.classes == split.test.classes == ("cat", "dog")
    assert names(split.train) == ["cat/a.png", "dog/b.png"]
    assert names(split.test) == ["cat/c.png", "dog/d.png"]
    assert split.description == f"train: {data}/train, test: {data}/{test} (2 training, 2 test samples)"


def test_a_class_called_test_is_a_class(tmp_path):
    data = fill(tmp_path, "train/a.png", "test/b.png", "bus/c.png")
    assert open_data(data, holdout=0.5).train.classes == ("bus", "test", "train")


def test_held_out_samples_stay_when_others_are_added(tmp_path):
    data = fill(tmp_path, *(f"{'cat' if index % 2 else 'dog'}/{index}.png" for index in range(200)))
    before = open_data(data, holdout=0.2)
    assert 20 <= len(before.test) <= 60
    assert set(names(before.train)) | set(names(before.test)) == set(names(FolderSource(data)))
    assert not set(names(before.train)) & set(names(before.test))
    fill(tmp_path, *(f"ape/{index}.png" for index in range(100)))
    after = open_data(data, holdout=0.2)
    assert set(names(before.test)) <= set(names(after.test))
    assert set(names(before.train)) <= set(names(after.train))
    assert set(names(open_data(data, holdout=0.2, seed=1).test)) != set(names(after.test))
    assert before.train.fingerprint() != before.test.fingerprint()


def test_held_out_samples_keep_their_labels_and_pixels(tmp_path):
    data = fill(tmp_path, *(f"{kind}/{index}.png" for kind in ("cat", "dog") for index in range(10)))
    split = open_data(data, holdout=0.5)
    for part in (split.train, split.test):
        assert all(class_of(part, index) == part.name(index)[:3] for index in range(len(part)))
        assert part.read(0).shape == (4, 4, 1)


def test_names_that_are_no_text_can_be_held_out(tmp_path):
    fill(tmp_path, *(f"{index}.png" for index in range(20)))
    os.rename(tmp_path / "3.png", os.fsencode(tmp_path) + b"/\xff.png")
    split = open_data(tmp_path)
    assert len(split.train) + len(split.test) == 20


def test_a_small_set_gives_each_part_a_sample(tmp_path):
    data = fill(tmp_path, "a.png", "b.png")
    split = open_data(data, holdout=0.001)
    assert (len(split.train), len(split.test)) == (1, 1)
    (tmp_path / "a.png").unlink()
    with pytest.raises(DataError, match="holds one sample; at least two are needed"):
        open_data(data)


def test_classes_are_matched_by_name(tmp_path):
    train = fill(tmp_path / "a", "cat/1.png", "dog/2.png", "eel/3.png")
    test = fill(tmp_path / "b", "bat/4.png", "dog/5.png", "eel/6.png")
    split = open_data(train, test_data=test)
    assert split.test.classes == ("cat", "dog", "eel")
    assert [class_of(split.test, index) for index in range(3)] == [None, "dog", "eel"]
    assert "1 test samples are not judged: training has no class bat" in split.description


def test_a_test_part_without_labels_is_taken(tmp_path):
    split = open_data(fill(tmp_path / "a", "cat/1.png"), test_data=fill(tmp_path / "b", "5.png"))
    assert split.test.labels.tolist() == [-1]
    split = open_data(fill(tmp_path / "c", "1.png"), test_data=fill(tmp_path / "d", "dog/5.png"))
    assert (split.test.classes, split.test.labels.tolist()) == ((), [-1])


def test_parts_without_a_common_class_are_refused(tmp_path):
    train, test = fill(tmp_path / "a", "cat/1.png"), fill(tmp_path / "b", "dog/2.png")
    with pytest.raises(DataError, match=r"no class in common \(train: cat; test: dog\)"):
        open_data(train, test_data=test)


def test_a_split_folder_beside_test_data_gives_its_own_part(tmp_path):
    data = fill(tmp_path / "a", "train/cat/1.png", "val/cat/2.png")
    other = fill(tmp_path / "b", "train/cat/3.png", "test/cat/4.png")
    split = open_data(data, test_data=other)
    assert names(split.train) == ["cat/1.png"]
    assert names(split.test) == ["cat/4.png"]
    assert names(open_data(data, test_data=data).test) == ["cat/2.png"]


def test_test_data_within_the_training_data_is_refused(tmp_path):
    data = fill(tmp_path, "cat/1.png", "dog/2.png")
    for test_data in (data, f"{data}/dog"):
        with pytest.raises(DataError, match="lie within training data"):
            open_data(data, test_data=test_data)


def test_arrays_are_opened_by_their_ending(tmp_path):
    images = np.arange(40 * 4 * 4, dtype=np.uint8).reshape(40, 4, 4)
    np.savez(tmp_path / "a.npz", x=images, y=np.arange(40) % 2)
    np.save(tmp_path / "b.npy", images[:5])
    split = open_data(str(tmp_path / "a.npz"))
    assert len(split.train) + len(split.test) == 40
    assert split.train.classes == ("0", "1")
    assert len(open_data(str(tmp_path / "a.npz"), test_data=str(tmp_path / "b.npy")).test) == 5


def test_a_folder_without_read_permission_says_so(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"' cannot be read: permission denied\.$"):
        open_data(tmp_path)


def test_wrong_arguments_are_named(tmp_path):
    with pytest.raises(ValueError, match="holdout must be between 0 and 1, got 1"):
        open_data(None, holdout=1)
    with pytest.raises(DataError, match=r"needs data; the embedded digits bring their own"):
        open_data(None, test_data="x")
    with pytest.raises(DataError, match="gone' does not exist"):
        open_data(str(tmp_path / "gone"))
    with pytest.raises(DataError, match=r"gone\.npz' does not exist"):
        open_data(str(tmp_path / "gone.npz"))

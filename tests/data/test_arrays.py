import pickle

import numpy as np
import pytest

from torchjepa.data import ArraySource, DataError, DecodeError

GRAY = np.arange(2 * 6 * 5, dtype=np.uint8).reshape(2, 6, 5)
COLOR = np.arange(2 * 6 * 5 * 3, dtype=np.uint8).reshape(2, 6, 5, 3)


def test_the_three_layouts_give_rows_columns_channels():
    assert np.array_equal(ArraySource(GRAY).read(1), GRAY[1][:, :, None])
    assert np.array_equal(ArraySource(COLOR).read(1), COLOR[1])
    assert np.array_equal(ArraySource(COLOR.transpose(0, 3, 1, 2)).read(1), COLOR[1])
    assert [ArraySource(images).num_channels for images in (GRAY, COLOR)] == [1, 3]


def test_two_possible_layouts_are_refused_and_can_be_said():
    both = np.zeros((2, 3, 6, 3), dtype=np.uint8)
    with pytest.raises(
        DataError, match=r"\[2, 3, 6, 3\]: both the second and the last axis could be the channels"
    ):
        ArraySource(both)
    assert ArraySource(both, layout="nchw").read(0).shape == (6, 3, 3)
    assert ArraySource(both, layout="nhwc").read(0).shape == (3, 6, 3)
    with pytest.raises(DataError, match="neither the second nor the last axis"):
        ArraySource(np.zeros((2, 6, 5, 7), dtype=np.uint8))


@pytest.mark.parametrize("shape", [(4, 10), (4,), (0, 8, 8), (1, 2, 3, 4, 5)])
def test_other_shapes_are_refused(shape):
    with pytest.raises(DataError, match=r"expected \[n, h, w\], \[n, h, w, c\] or \[n, c, h, w\]"):
        ArraySource(np.zeros(shape, dtype=np.uint8))


def test_wide_values_are_scaled():
    assert ArraySource(np.full((1, 2, 2), 25700, dtype=np.uint16)).read(0).max() == 100
    for kind in (np.float16, np.float32, np.float64):
        values = np.asarray([[[0.0, 0.25], [0.5, 1.0]]], dtype=kind)
        assert ArraySource(values).read(0)[..., 0].tolist() == [[0, 64], [128, 255]]


def test_values_outside_their_range_are_refused():
    with pytest.raises(DataError, match=r"must be in \[0, 1\], got 0 to 255; divide them"):
        ArraySource(np.asarray([[[0.0, 255.0]]]))
    with pytest.raises(
        DataError, match=r"images of type int64; expected uint8, uint16 or .*astype\('uint8'\)"
    ):
        ArraySource(np.zeros((1, 2, 2), dtype=np.int64))
    hidden = np.zeros((200, 1, 1))
    hidden[1] = 7  # not among those looked at first
    with pytest.raises(DecodeError, match=r"values from 7 to 7, expected \[0, 1\]"):
        ArraySource(hidden).read(1)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
@pytest.mark.parametrize("keys", [("images", "labels"), ("x", "y"), None])
def test_npz_files(tmp_path, save, keys):
    labels = np.asarray([7, 3])
    path = tmp_path / "a.npz"
    save(path, COLOR, labels) if keys is None else save(path, **{keys[0]: COLOR, keys[1]: labels})
    source = ArraySource(path)
    assert np.array_equal(source.read(1), COLOR[1])
    assert source.classes == ("3", "7")
    assert source.labels.tolist() == [1, 0]
    assert source.name(1) == "1"


def test_uncompressed_files_are_mapped_not_loaded(tmp_path):
    np.save(tmp_path / "a.npy", COLOR)
    np.savez(tmp_path / "a.npz", images=np.asfortranarray(COLOR))
    for name in ("a.npy", "a.npz"):
        source = ArraySource(tmp_path / name)
        assert isinstance(source._images, np.memmap)
        assert np.array_equal(source.read(1), COLOR[1])
        assert np.array_equal(pickle.loads(pickle.dumps(source)).read(1), COLOR[1])


def test_labels_may_be_names_or_missing():
    source = ArraySource({"x": GRAY, "y": np.asarray(["dog", "cat"])})
    assert (source.classes, source.labels.tolist()) == (("cat", "dog"), [1, 0])
    source = ArraySource({"x": GRAY, "y": np.asarray([-1, 4])})
    assert (source.classes, source.labels.tolist()) == (("4",), [-1, 0])
    source = ArraySource({"x": GRAY, "y": np.asarray([[5], [5]])})
    assert (source.classes, source.labels.tolist()) == (("5",), [0, 0])
    assert ArraySource(GRAY).labels.tolist() == [-1, -1]


def test_wrong_labels_are_refused():
    for labels in (np.zeros(3, dtype=int), np.zeros(2)):
        with pytest.raises(DataError, match="expected 2 integers or strings"):
            ArraySource({"x": GRAY, "y": labels})


def test_files_that_cannot_be_used_say_why(tmp_path):
    np.savez(tmp_path / "other.npz", pictures=GRAY)
    np.save(tmp_path / "objects.npy", np.asarray([{}, {}], dtype=object))
    np.savez(tmp_path / "objects.npz", images=np.asarray([{}, {}], dtype=object))
    (tmp_path / "text.npz").write_text("hello")
    (tmp_path / "text.npy").write_text("hello")
    for name, message in (
        ("other.npz", r"other\.npz' has no images or x or arr_0; it has pictures\."),
        ("objects.npy", r"holds Python objects \(a pickle\), not numbers; it is not opened"),
        ("objects.npz", r"holds Python objects \(a pickle\), not numbers; it is not opened"),
        ("text.npz", r"text\.npz' is not a readable NumPy file: "),
        ("text.npy", r"text\.npy' is not a readable NumPy file: it does not begin like one\."),
        ("gone.npz", r"gone\.npz' does not exist"),
    ):
        with pytest.raises(DataError, match=message):
            ArraySource(tmp_path / name)


@pytest.mark.parametrize("name", ["a.npy", "a.npz"])
def test_a_file_without_read_permission_says_so(tmp_path, monkeypatch, name):
    (tmp_path / name).touch()

    def refuse(path, *_, **__):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setattr("io.open", refuse)
    with pytest.raises(DataError, match=rf"{name}' cannot be read: permission denied\.$"):
        ArraySource(tmp_path / name)


def test_the_fingerprint_follows_pixels_and_labels():
    first = ArraySource({"x": GRAY, "y": np.asarray([0, 1])}).fingerprint()
    assert first == ArraySource({"x": GRAY.copy(), "y": np.asarray([0, 1])}).fingerprint()
    assert first != ArraySource({"x": GRAY + 1, "y": np.asarray([0, 1])}).fingerprint()
    assert first != ArraySource({"x": GRAY, "y": np.asarray([1, 0])}).fingerprint()
    assert first["shape"] == [2, 6, 5, 1]

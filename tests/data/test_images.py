import os
import pickle

import numpy as np
import pytest
from PIL import Image

from torchjepa.data import DataError, DecodeError, FolderSource


def fill(root, *names, size=(8, 8), color=(10, 20, 30)):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        mode = "L" if isinstance(color, int) else "RGB"
        Image.new(mode, size, color).save(path)
    return root


def test_images_at_any_depth_are_found_sorted_and_labelled_by_top_folder(tmp_path):
    fill(tmp_path, "dog/b.png", "cat/deep/deeper/a.PNG", "cat/z.jpeg", "top.bmp")
    (tmp_path / "cat/readme.txt").write_text("no image")
    fill(tmp_path / ".hidden", "x.png")
    (tmp_path / "cat/._z.jpeg").write_text("left by another system")
    source = FolderSource(tmp_path)
    assert [source.name(index) for index in range(len(source))] == [
        "cat/deep/deeper/a.PNG",
        "cat/z.jpeg",
        "dog/b.png",
        "top.bmp",
    ]
    assert source.classes == ("cat", "dog")
    assert source.labels.tolist() == [0, 0, 1, -1]


def test_a_folder_whose_images_all_lie_at_the_top_has_no_labels(tmp_path):
    source = FolderSource(fill(tmp_path, "a.png", "b.png"))
    assert source.classes == ()
    assert source.labels.tolist() == [-1, -1]


def test_linked_folders_are_followed_and_circles_end(tmp_path):
    fill(tmp_path / "far", "a.png")
    fill(tmp_path / "set", "cat/b.png")
    os.symlink(tmp_path / "far", tmp_path / "set/dog")
    os.symlink(tmp_path / "set", tmp_path / "set/cat/round")
    source = FolderSource(tmp_path / "set")
    assert [source.name(index) for index in range(len(source))] == ["cat/b.png", "dog/a.png"]


def test_names_may_hold_any_character(tmp_path):
    source = FolderSource(fill(tmp_path, "größe/ä b,c.png", "日本/é.png"))
    assert source.classes == ("größe", "日本")
    assert source.read(0).shape == (8, 8, 3)
    with pytest.raises(IndexError):
        source.name(2)


@pytest.mark.parametrize("color", [7, (1, 2, 3)])
def test_channels_are_those_of_the_images(tmp_path, color):
    source = FolderSource(fill(tmp_path, "a.png", "b.png", color=color))
    assert source.num_channels == (1 if color == 7 else 3)
    assert source.read(1)[0, 0].tolist() == ([7] if color == 7 else [1, 2, 3])


def test_images_of_one_size_are_decoded_once(tmp_path):
    source = FolderSource(fill(tmp_path, "a.png", "b.png", "c.png"))
    first = source.read(1).copy()
    (tmp_path / "b.png").unlink()
    assert np.array_equal(source.read(1), first)
    (tmp_path / "c.png").unlink()
    with pytest.raises(DecodeError, match=r"No such file"):
        source.read(2)


def test_nothing_is_kept_beyond_the_budget_or_for_images_of_several_sizes(tmp_path):
    small = FolderSource(fill(tmp_path / "one", "a.png", "b.png"), cache_bytes=100)
    fill(tmp_path / "two", "a.png")
    mixed = FolderSource(fill(tmp_path / "two", "b.png", size=(9, 9)))
    for source, folder in ((small, "one"), (mixed, "two")):
        source.read(0)
        (tmp_path / folder / "a.png").unlink()
        with pytest.raises(DecodeError):
            source.read(0)


def test_an_image_of_another_size_passes_by_what_is_kept(tmp_path):
    fill(tmp_path, *(f"{index:03}.png" for index in range(40)))
    fill(tmp_path, "001.png", size=(5, 6))  # not among those looked at first
    source = FolderSource(tmp_path)
    assert [source.read(1).shape for _ in range(2)] == [(6, 5, 3)] * 2


def test_a_pickled_source_reads_the_same(tmp_path):
    source = FolderSource(fill(tmp_path, "x/a.png", "y/b.png"))
    copy = pickle.loads(pickle.dumps(source))
    assert np.array_equal(copy.read(1), source.read(1))
    assert copy.fingerprint() == source.fingerprint()


def test_the_fingerprint_follows_the_names(tmp_path):
    before = FolderSource(fill(tmp_path, "x/a.png")).fingerprint()
    assert before == FolderSource(tmp_path).fingerprint()
    assert before["num_samples"] == 1
    assert before != FolderSource(fill(tmp_path, "x/b.png")).fingerprint()


def test_a_missing_path_says_so(tmp_path):
    with pytest.raises(
        DataError, match=r"gone' does not exist\. Give a folder of images, or an \.npz or \.npy file\."
    ):
        FolderSource(tmp_path / "gone")


def test_a_file_that_is_no_array_says_so(tmp_path):
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(
        DataError, match=r"notes\.txt' is neither a folder of images nor an \.npz or \.npy file"
    ):
        FolderSource(tmp_path / "notes.txt")


def test_an_empty_folder_names_what_was_looked_for(tmp_path):
    (tmp_path / "below").mkdir()
    with pytest.raises(
        DataError, match=r"holds no images \(looked for \.bmp, \.gif, .*\.webp at any depth\)"
    ):
        FolderSource(tmp_path)


def test_a_folder_without_read_permission_says_so(tmp_path, monkeypatch):
    fill(tmp_path, "open/a.png", "closed/b.png")
    scandir = os.scandir

    def refuse(folder):
        if str(folder).endswith("closed"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"closed' cannot be read: permission denied\.$"):
        FolderSource(tmp_path)

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from torchjepa.data import index
from torchjepa.data.index import index_folder


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHJEPA_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(index, "_KEPT_FROM", 3)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "set"
    fill(root, "cat/1.png", "cat/2.png", "dog/deep/3.png", "4.png")
    return root


@pytest.fixture
def settled(monkeypatch):
    """A clock an hour ahead: every folder has been at rest for long."""
    now = time.time_ns
    monkeypatch.setattr(index.time, "time_ns", lambda: now() + 3600 * 10**9)


def fill(root, *names):
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()


def names_of(root):
    found = index_folder(str(root)).names
    return [found[place] for place in range(len(found))]


def kept(tmp_path):
    return sorted((tmp_path / "cache").rglob("*.npz"))


def walks(monkeypatch):
    """Counts how often a folder is walked through."""
    calls, run = [], index._Walk.run
    monkeypatch.setattr(index._Walk, "run", lambda walk: (calls.append(walk.root), run(walk))[1])
    return calls


PARTS = st.text(alphabet="ab-./0_é\U0001f600", min_size=1, max_size=4).filter(
    lambda t: "/" not in t and t[0] != "."
)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(PARTS, min_size=1, max_size=3), min_size=1, max_size=12))
def test_any_tree_is_in_the_order_of_its_sorted_paths(tmp_path_factory, paths):
    root = tmp_path_factory.mktemp("tree")
    for parts in paths:
        file = root.joinpath(*parts[:-1], parts[-1] + ".png")
        if not any(parent.is_file() for parent in file.parents) and not file.is_dir():
            fill(root, file.relative_to(root))
    expected = sorted(str(path.relative_to(root)) for path in root.rglob("*.png") if path.is_file())
    found = index_folder(str(root))
    assert names_of(root) == expected
    classes, labels = found.labels()
    tops = [name.split("/")[0] if "/" in name else None for name in expected]
    assert classes == tuple(sorted({top for top in tops if top is not None}))
    assert [classes[label] if label >= 0 else None for label in labels] == tops


def test_a_kept_index_is_read_without_walking(root, tmp_path, settled, monkeypatch):
    calls = walks(monkeypatch)
    first, second = index_folder(str(root)), index_folder(str(root))
    assert len(calls) == len(kept(tmp_path)) == 1
    assert first.names.digest() == second.names.digest()
    assert first.tops == second.tops
    assert np.array_equal(first.labels()[1], second.labels()[1])
    assert first.labels()[0] == second.labels()[0] == ("cat", "dog")


CHANGES = {
    "added": lambda root: (root / "dog/deep/9.png").touch(),
    "added at the top": lambda root: (root / "9.png").touch(),
    "removed": lambda root: (root / "cat/1.png").unlink(),
    "renamed": lambda root: (root / "cat/1.png").rename(root / "cat/0.png"),
    "swapped": lambda root: (root / "cat/1.png").rename(root / "dog/1.png"),
    "a new folder": lambda root: fill(root, "eel/1.png"),
    "an empty folder filled": lambda root: fill(root, "empty/1.png"),
    "a folder replaced": lambda root: (
        (root / "cat").rename(root.parent / "away"),
        fill(root, "cat/1.png", "cat/7.png"),
    ),
    "the root replaced": lambda root: (root.rename(root.parent / "away"), fill(root, "cat/7.png")),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("same_time", [False, True])
def test_a_changed_folder_is_walked_through_anew(root, settled, change, same_time):
    (root / "empty").mkdir()
    before = names_of(root)
    stats = {path: path.stat() for path in (root, *root.rglob("*")) if path.is_dir()}
    CHANGES[change](root)
    if same_time:  # as tools do that copy a tree with its times
        for path, stat in ((path, stat) for path, stat in stats.items() if path.exists()):
            os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert names_of(root) == sorted(str(p.relative_to(root)) for p in root.rglob("*.png")) != before


def test_a_link_that_points_elsewhere_is_noticed(root, tmp_path, settled):
    fill(tmp_path / "one", "1.png")
    fill(tmp_path / "two", "2.png")
    (tmp_path / "middle").symlink_to(tmp_path / "one")
    (root / "eel").symlink_to(tmp_path / "middle")
    assert "eel/1.png" in names_of(root)
    (tmp_path / "middle").unlink()
    (tmp_path / "middle").symlink_to(tmp_path / "two")  # nothing below the root has changed
    assert "eel/2.png" in names_of(root)


def test_a_second_way_to_a_folder_that_leads_elsewhere_is_noticed(root, tmp_path, settled):
    fill(tmp_path / "other", "5.png")
    (tmp_path / "middle").symlink_to(root / "cat")
    (root / "eel").symlink_to(tmp_path / "middle")
    assert not any(name.startswith("eel") for name in names_of(root))
    (tmp_path / "middle").unlink()
    (tmp_path / "middle").symlink_to(tmp_path / "other")
    assert "eel/5.png" in names_of(root)


def test_nothing_is_kept_below_a_link_that_leads_nowhere_yet(root, tmp_path, settled):
    (root / "eel").symlink_to(tmp_path / "later")
    names_of(root)
    assert not kept(tmp_path)
    fill(tmp_path / "later", "1.png")
    assert "eel/1.png" in names_of(root)


def test_a_folder_that_has_just_changed_is_not_trusted(root, tmp_path):
    names_of(root)
    assert not kept(tmp_path)


def test_few_images_are_not_kept(root, tmp_path, settled, monkeypatch):
    monkeypatch.setattr(index, "_KEPT_FROM", 5)
    names_of(root)
    assert not kept(tmp_path)


@pytest.mark.parametrize("length", [0, 10, 0.5, 0.99])
def test_a_torn_index_is_written_anew(root, tmp_path, settled, monkeypatch, length):
    expected, (path,) = names_of(root), kept(tmp_path)
    whole = path.read_bytes()
    path.write_bytes(whole[: length if isinstance(length, int) else int(length * len(whole))])
    assert names_of(root) == expected
    calls = walks(monkeypatch)
    assert names_of(root) == expected
    assert not calls


def test_an_index_with_a_turned_bit_is_not_believed(root, tmp_path, settled):
    expected, (path,) = names_of(root), kept(tmp_path)
    whole = path.read_bytes()
    place = whole.index(b"cat/1.png")
    path.write_bytes(whole[:place] + b"k" + whole[place + 1 :])
    assert names_of(root) == expected


@pytest.mark.parametrize(
    ("key", "value"),
    [("format", 0), ("root", "/elsewhere"), ("extensions", [".png"]), ("num_images", 3), ("states", 1)],
)
def test_an_index_of_another_kind_is_not_believed(root, tmp_path, settled, key, value):
    expected, (path,) = names_of(root), kept(tmp_path)
    with np.load(path) as file:
        arrays = dict(file)
    header = index.json.loads(arrays["header"].tobytes()) | {key: value}
    arrays["header"] = np.frombuffer(index.json.dumps(header).encode(), dtype=np.uint8)
    arrays["names"] = np.full_like(arrays["names"], ord("x"))
    np.savez(path, **arrays)
    assert names_of(root) == expected


def test_no_room_or_right_to_write_is_no_error(root, tmp_path, settled):
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert len(names_of(root)) == 4


@pytest.mark.parametrize(
    ("variables", "place"),
    [
        ({"TORCHJEPA_CACHE": ""}, None),
        ({"XDG_CACHE_HOME": "/x"}, "/x/torchjepa/index"),
        ({"XDG_CACHE_HOME": "", "HOME": "/home/me"}, "/home/me/.cache/torchjepa/index"),
        ({"XDG_CACHE_HOME": "/x", "TORCHJEPA_CACHE": "/t"}, "/t/index"),
    ],
)
def test_the_place_follows_the_environment(monkeypatch, variables, place):
    monkeypatch.delenv("TORCHJEPA_CACHE")
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    found = index._place("/data")
    assert (None if found is None else str(found.parent)) == place


def test_several_processes_at_once_leave_one_whole_index(root, tmp_path, settled):
    found = []
    threads = [threading.Thread(target=lambda: found.append(names_of(root))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [names_of(root)] * 8
    assert [path.name for path in (tmp_path / "cache/index").iterdir()] == [Path(kept(tmp_path)[0]).name]


def test_names_that_are_no_text_are_kept(root, settled):
    os.mkdir(os.fsencode(root) + b"/\xff")
    (root / os.fsdecode(b"\xff/\xfe.png")).touch()
    assert names_of(root) == names_of(root)
    assert os.fsdecode(b"\xff/\xfe.png") in names_of(root)

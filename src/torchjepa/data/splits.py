"""From what the user names to a training part and a test part that share no sample."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np

from torchjepa.data.arrays import ArraySource
from torchjepa.data.errors import DataError
from torchjepa.data.images import FolderSource
from torchjepa.data.procedural.digits import DigitsSource
from torchjepa.data.procedural.moving_digits import MovingDigitsSource
from torchjepa.data.source import ImageSource, Source, Subset, tasks_of
from torchjepa.data.video_source import FRAME_FOLDER_RATE, open_video_source
from torchjepa.rng import derive_seed

_TEST_FOLDERS = ("test", "val", "valid", "validation")


@dataclass(frozen=True)
class DataSplit:
    """What is trained on and what is judged on.

    Args:
        train: the training part.
        test: the part that is never trained on; its classes are those of `train`, in the same order.
        description: a sentence or two for the user: where both came from, and what was left out.
    """

    train: Source
    test: Source
    description: str


def open_data(
    data: str | os.PathLike[str] | None,
    *,
    test_data: str | os.PathLike[str] | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    min_size: int | None = None,
) -> DataSplit:
    """Open a data set for training and judging.

    `test_data`, where given, is the test part. Else a folder whose only folders are `train` and one or more
    of test, val, valid, validation is taken as that split (the first of these that is there). Else a sample
    is held out when a hash of `(seed, its name)` falls below `holdout`, so that it stays on its side when
    others are added.

    Args:
        data: a folder of images, an .npz or .npy file, or `None` for the embedded digits.
        test_data: the same kinds, held out whole.
        holdout: share that is held out where nothing else says what the test part is, in (0, 1).
        seed: key of the held-out part. The embedded digits are the same for every seed, so that runs compare.
        min_size: short side that JPEGs keep when they are decoded at reduced size (see `FolderSource`).

    Raises:
        DataError: a path that cannot be used, fewer than two samples, `test_data` without `data` or within
            it, or parts without a class in common.
        ValueError: `holdout` outside (0, 1).
    """
    _check_holdout("open_data", holdout)
    if data is None:
        _check_embedded(test_data)
        train, test = DigitsSource("train"), DigitsSource("test")
        return DataSplit(train, test, f"embedded digits: {len(train)} training, {len(test)} test canvases")
    return _split(data, test_data, holdout, seed, partial(open_source, min_size=min_size))


def open_videos(
    data: str | os.PathLike[str] | None,
    *,
    test_data: str | os.PathLike[str] | None = None,
    holdout: float = 0.1,
    seed: int = 0,
    min_size: int | None = None,
    frame_folder_rate: float = FRAME_FOLDER_RATE,
) -> DataSplit:
    """Open a set of videos for training and judging; the parts are found as `open_data` finds them.

    Pieces of one file, where a table names several, are held out together.

    Args:
        data: a folder of videos (see `VideoFolderSource`), a CSV file of their paths (see `VideoTableSource`), or
            `None` for the embedded moving digits.
        test_data: the same kinds, held out whole.
        holdout: share that is held out where nothing else says what the test part is, in (0, 1).
        seed: key of the held-out part.
        min_size: short side that frames keep when they are decoded at reduced size.
        frame_folder_rate: frames a second of videos that are folders of images, which do not say.

    Raises:
        DataError: as `open_data`.
        ValueError: `holdout` outside (0, 1), or frame_folder_rate not above 0.
    """
    _check_holdout("open_videos", holdout)
    if data is None:
        _check_embedded(test_data)
        train, test = MovingDigitsSource("train"), MovingDigitsSource("test")
        return DataSplit(
            train, test, f"embedded moving digits: {len(train)} training, {len(test)} test videos"
        )
    open_one = partial(open_video_source, min_size=min_size, frame_folder_rate=frame_folder_rate)
    split = _split(data, test_data, holdout, seed, open_one)
    return replace(split, description=split.description + _folders_read(split))


def _folders_read(split: DataSplit) -> str:
    # A class folder that holds nothing but numbered pictures looks like one: it must not be taken for one in silence.
    whole = {id(source): source for source in map(_whole, (split.train, split.test))}
    num = sum(getattr(source, "num_frame_folders", 0) for source in whole.values())
    if not num:
        return ""
    return (
        f"; {num} of the videos are folders of numbered images, each read as the frames of one video (for pictures "
        "that are samples of their own use a recipe that takes images)"
    )


def _whole(source: Source) -> Source:
    return source.source if isinstance(source, Subset) else source


def _check_holdout(name: str, holdout: float) -> None:
    if not 0 < holdout < 1:
        raise ValueError(f"{name}: holdout must be between 0 and 1, got {holdout}.")


def _check_embedded(test_data: str | os.PathLike[str] | None) -> None:
    if test_data is not None:
        raise DataError(
            f"test data ({os.fspath(test_data)!r}) needs data; the embedded digits bring their own."
        )


def _split(
    data: str | os.PathLike[str],
    test_data: str | os.PathLike[str] | None,
    holdout: float,
    seed: int,
    open_one: Callable[[str], Source],
) -> DataSplit:
    data = os.fspath(data)
    folders = _split_folders(data)
    if test_data is not None:
        test_data = os.fspath(test_data)
        train_path = data if folders is None else folders[0]
        test_folders = _split_folders(test_data)
        test_path = test_data if test_folders is None else test_folders[1]
    elif folders is not None:
        train_path, test_path = folders
    else:
        return _hold_out(open_one(data), data, holdout, seed)
    _check_apart(train_path, test_path)
    return _pair(open_one(train_path), open_one(test_path), f"train: {train_path}, test: {test_path}")


def open_source(data: str, min_size: int | None = None, cache_bytes: int = 2**30) -> ImageSource:
    """Open one data set, whole: an .npz or .npy file, or a folder of images.

    Args:
        data: the path.
        min_size: short side that JPEGs keep when they are decoded at reduced size (see `FolderSource`).
        cache_bytes: decoded images of a folder are kept if all of them fit in this many bytes; 0: never, for
            one that is read once.

    Raises:
        DataError: a path that cannot be used.
    """
    if not os.path.isdir(data) and data.lower().endswith((".npz", ".npy")):
        return ArraySource(data)
    return FolderSource(data, min_size=min_size, cache_bytes=cache_bytes)


def _check_apart(train: str, test: str) -> None:
    whole, part = os.path.realpath(train), os.path.realpath(test)
    if part == whole or part.startswith(whole + os.sep):
        raise DataError(f"test data ({test!r}) lie within training data ({train!r}); keep them apart.")


def _split_folders(data: str) -> tuple[str, str] | None:
    # A class called "test" beside other classes is a class: only nothing but split names makes a split.
    if not os.path.isdir(data):
        return None
    try:
        with os.scandir(data) as entries:
            found = {
                entry.name.lower(): entry.name for entry in entries if entry.is_dir() and entry.name[0] != "."
            }
    except PermissionError as error:
        raise DataError(f"{data!r} cannot be read: permission denied.") from error
    tests = [name for name in _TEST_FOLDERS if name in found]
    if "train" not in found or not tests or set(found) - {"train", *_TEST_FOLDERS}:
        return None
    return os.path.join(data, found["train"]), os.path.join(data, found[tests[0]])


def _pair(train: Source, test: Source, description: str) -> DataSplit:
    if train.classes and test.classes:
        unknown = [name for name in test.classes if name not in train.classes]
        if len(unknown) == len(test.classes):
            raise DataError(
                f"{description}: the parts have no class in common (train: {_few(train.classes)}; "
                f"test: {_few(test.classes)})."
            )
        if unknown:
            num = int(np.isin(test.labels, [test.classes.index(name) for name in unknown]).sum())
            description += f"; {num} test samples are not judged: training has no class {_few(unknown)}"
    tasks = {name: task.classes for name, task in tasks_of(train).items()}
    if test.classes != train.classes or any(
        task.classes != tasks.get(name, task.classes) for name, task in tasks_of(test).items()
    ):
        test = Subset(test, classes=train.classes, tasks=tasks)
    return DataSplit(train, test, f"{description} ({len(train)} training, {len(test)} test samples)")


def _hash(seed: int, name: str) -> int:
    # File names may hold bytes that are no text; as Latin-1 every name is.
    return derive_seed(seed, "holdout", os.fsencode(name).decode("latin-1"))


def _few(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _hold_out(source: Source, data: str, holdout: float, seed: int) -> DataSplit:
    if len(source) < 2:
        raise DataError(
            f"{data!r} holds one sample; at least two are needed, one to train on and one to judge on."
        )
    origin = getattr(source, "origin", source.name)  # several samples may be pieces of one file
    hashes = np.asarray([_hash(seed, origin(index)) for index in range(len(source))])
    if hashes.min() == hashes.max():
        raise DataError(f"all samples of {data!r} are pieces of one file; at least two files are needed.")
    held = hashes < holdout * 2.0**63
    held |= hashes == hashes.min()  # a small set still gives each part at least one
    held &= hashes != hashes.max()
    train, test = Subset(source, np.flatnonzero(~held)), Subset(source, np.flatnonzero(held))
    return DataSplit(
        train, test, f"{data}: {len(train)} training samples, {len(test)} held out by a hash of their names"
    )

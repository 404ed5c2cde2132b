"""What a set of images or of videos is to the rest of the package, and how a part of one is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.jpeg import TopRows


@runtime_checkable
class ImageSource(Protocol):
    """A set of images that can be read in any order.

    Attributes:
        classes: the names of the classes, sorted; empty where there are no labels.
        labels: class index of each sample, int64 `[n]`, -1 where there is none. For judging only.
        num_channels: 1 where every image is gray, else the channels of most, usually 3.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    num_channels: int

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The sample's name: a path below the folder, or the index in an array."""
        ...

    def read(self, index: int) -> NDArray[np.uint8]:
        """The image, uint8 `[h, w, c]`; raises `DecodeError`."""
        ...

    def fingerprint(self) -> dict[str, object]:
        """What identifies the set, for run.json: JSON values only."""
        ...


@runtime_checkable
class PartialSource(ImageSource, Protocol):
    """A set of images that remembers their sizes and can leave out rows that nobody will look at."""

    def known_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Height and width of images read before, `[b, 2]`; zeros where they are not known."""
        ...

    def read_top(self, index: int, top: TopRows) -> NDArray[np.uint8]:
        """The image at its full size, black perhaps below the rows asked for; raises `DecodeError`."""
        ...


@dataclass(frozen=True)
class VideoInfo:
    """What is known of a video before one of its frames is decoded.

    Args:
        duration: seconds that the sample lasts, above 0.
        frame_rate: frames a second of the file, on average; `None` where it does not say.
    """

    duration: float
    frame_rate: float | None


ChooseTimes: TypeAlias = Callable[[VideoInfo], Sequence[NDArray[np.float64]]]


@runtime_checkable
class VideoSource(Protocol):
    """A set of videos that can be read in any order.

    A source that labels its samples in more than one way has an attribute `tasks` too, `Mapping[str, Task]`.

    Attributes:
        classes: the names of the classes, sorted; empty where there are no labels.
        labels: class index of each sample, int64 `[n]`, -1 where there is none. For judging only.
        num_channels: 1 where every video is gray, else 3.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]
    num_channels: int

    def __len__(self) -> int: ...

    def name(self, index: int) -> str:
        """The sample's name: a path below the folder, say."""
        ...

    def read_clips(self, index: int, choose: ChooseTimes) -> list[NDArray[np.uint8]]:
        """Clips of one video, uint8 `[t, h, w, c]` each, from one opening of its file.

        Args:
            index: the sample.
            choose: gives the times of each clip's frames, ascending float64 `[t]`, in seconds from the start of the
                sample. The frame at a time is the one on the screen then; beyond the end, the last one.

        Raises:
            DecodeError: the file cannot be decoded, or is cut off before a time.
        """
        ...

    def fingerprint(self) -> dict[str, object]:
        """What identifies the set, for run.json: JSON values only."""
        ...


Source: TypeAlias = ImageSource | VideoSource


@dataclass(frozen=True)
class Task:
    """One way to label the samples of a source.

    Args:
        classes: the names of the classes.
        labels: class index of each sample, int64 `[n]`, -1 where there is none.
    """

    classes: tuple[str, ...]
    labels: NDArray[np.int64]


def tasks_of(source: Source) -> Mapping[str, Task]:
    """Every way to label the samples of a source, by name: its `tasks`, or `label` alone where it has none.

    Args:
        source: images or videos.
    """
    tasks: Mapping[str, Task] | None = getattr(source, "tasks", None)
    return tasks or {"label": Task(source.classes, source.labels)}


class Subset:
    """Some samples of a source, under their own indices and, if given, another list of classes.

    It is read as its source is: `read` for images, `read_clips` for videos.

    Args:
        source: the whole.
        indices: which samples, int `[n]`; all of them when `None`.
        classes: the new list of classes; a sample whose class is not in it gets no label (-1).
        tasks: the new lists of classes of the source's other tasks, where it has several.
    """

    def __init__(
        self,
        source: Source,
        indices: Sequence[int] | NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
        *,
        tasks: Mapping[str, Sequence[str]] | None = None,
    ) -> None:
        self.source = source
        self.indices = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
        self.num_channels = source.num_channels
        own = Task(source.classes, source.labels)
        chosen = _relabelled(own, self.indices, classes)
        self.classes, self.labels = chosen.classes, chosen.labels
        self.tasks: Mapping[str, Task] | None = None
        if getattr(source, "tasks", None):
            wanted = {"label": classes, **(tasks or {})}
            self.tasks = {
                name: _relabelled(task, self.indices, wanted.get(name))
                for name, task in tasks_of(source).items()
            }

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The sample's name in the whole."""
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> NDArray[np.uint8]:
        """The image, uint8 `[h, w, c]`; raises `DecodeError`."""
        return cast(ImageSource, self.source).read(int(self.indices[index]))

    def known_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Height and width of images read before, `[b, 2]`; zeros where they are not known."""
        if not isinstance(self.source, PartialSource):
            return np.zeros((len(indices), 2), dtype=np.int64)
        return self.source.known_sizes(self.indices[indices])

    def read_top(self, index: int, top: TopRows) -> NDArray[np.uint8]:
        """The image at its full size, black perhaps below the rows asked for; raises `DecodeError`."""
        return cast(PartialSource, self.source).read_top(int(self.indices[index]), top)

    def read_clips(self, index: int, choose: ChooseTimes) -> list[NDArray[np.uint8]]:
        """Clips of the video, uint8 `[t, h, w, c]` each; raises `DecodeError`."""
        return cast(VideoSource, self.source).read_clips(int(self.indices[index]), choose)

    def fingerprint(self) -> dict[str, object]:
        """That of the whole, and which part of it this is."""
        chosen = hashlib.sha256(self.indices.tobytes()).hexdigest()
        return {**self.source.fingerprint(), "subset_size": len(self), "subset_sha256": chosen}


def _relabelled(task: Task, indices: NDArray[np.int64], classes: Sequence[str] | None) -> Task:
    names = task.classes if classes is None else tuple(classes)
    place: Mapping[str, int] = {name: index for index, name in enumerate(names)}
    # The last entry serves label -1: no label stays no label.
    table = np.asarray([*(place.get(name, -1) for name in task.classes), -1], dtype=np.int64)
    return Task(names, table[task.labels[indices]])

"""What a set of images is to the rest of the package, and how a part of one is taken."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray


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


class Subset:
    """Some samples of a source, under their own indices and, if given, another list of classes.

    Args:
        source: the whole.
        indices: which samples, int `[n]`; all of them when `None`.
        classes: the new list of classes; a sample whose class is not in it gets no label (-1).
    """

    def __init__(
        self,
        source: ImageSource,
        indices: Sequence[int] | NDArray[np.int64] | None = None,
        classes: Sequence[str] | None = None,
    ) -> None:
        self.source = source
        self.indices = np.arange(len(source)) if indices is None else np.asarray(indices, dtype=np.int64)
        self.classes = source.classes if classes is None else tuple(classes)
        self.num_channels = source.num_channels
        place: Mapping[str, int] = {name: index for index, name in enumerate(self.classes)}
        # The last entry serves label -1: no label stays no label.
        table = np.asarray([*(place.get(name, -1) for name in source.classes), -1], dtype=np.int64)
        self.labels = table[source.labels[self.indices]]

    def __len__(self) -> int:
        return len(self.indices)

    def name(self, index: int) -> str:
        """The sample's name in the whole."""
        return self.source.name(int(self.indices[index]))

    def read(self, index: int) -> NDArray[np.uint8]:
        """The image, uint8 `[h, w, c]`; raises `DecodeError`."""
        return self.source.read(int(self.indices[index]))

    def fingerprint(self) -> dict[str, object]:
        """That of the whole, and which part of it this is."""
        chosen = hashlib.sha256(self.indices.tobytes()).hexdigest()
        return {**self.source.fingerprint(), "subset_size": len(self), "subset_sha256": chosen}

"""A folder of images at any depth."""

from __future__ import annotations

import mmap
import multiprocessing
import os
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchjepa.data.decode import decode_image
from torchjepa.data.errors import DataError, DecodeError
from torchjepa.data.index import EXTENSIONS, VIDEO_EXTENSIONS, VIDEO_FILES, index_folder
from torchjepa.data.jpeg import TopRows

_FOR_VIDEOS = "For videos use a recipe that takes clips, such as vjepa-digits with --data."
_NUM_LOOKED_AT = 16  # images decoded at the start to learn the channels and whether the sizes are equal


class FolderSource:
    """The images below a folder, sorted by path; a top-level folder's name is the label of what it holds.

    Hidden files and folders are passed over; links are followed, no folder twice. Images that lie at the top
    have no label. The names of 10,000 images or more are kept for the next start: `index_folder` of
    `torchjepa.data.index` says where, and when they are looked for anew.

    Where a look at some images finds one size, decoded images are kept in memory that forked workers share, so
    that each is decoded once and not in every epoch. Of other images the sizes are kept, so that from the second
    epoch on the crops of a JPEG are known before it is decoded, and it is decoded no further down than they
    reach. The same look sets `num_channels`: 3 if any of them is in colour.

    Args:
        path: the folder.
        min_size: short side in pixels that a JPEG keeps when it is reduced while it is decoded (see
            `decode_image`). With twice the training size no square crop of a quarter of the area or more
            is enlarged. `None`: full size.
        cache_bytes: decoded images are kept if all of them fit in this many bytes, default 1 GiB; 0: never.

    Raises:
        DataError: the path does not exist, is not a folder, cannot be read, or holds no images.
    """

    def __init__(
        self, path: str | os.PathLike[str], *, min_size: int | None = None, cache_bytes: int = 2**30
    ) -> None:
        self.path = os.fspath(path)
        self.min_size = min_size
        _check_folder(self.path)
        index = index_folder(self.path)
        self._names = index.names
        if not len(self):
            raise DataError(_no_images(self.path))
        self.classes: tuple[str, ...]
        self.labels: NDArray[np.int64]
        self.classes, self.labels = index.labels()
        shapes = self._look()
        self.num_channels: int = max((shape[2] for shape in shapes), default=3)
        num_bytes = len(self) * int(np.prod(shapes[0])) if len(set(shapes)) == 1 else 0
        self._cache = _SharedCache(len(self), shapes[0]) if 0 < num_bytes <= cache_bytes else None
        self._sizes = None if self._cache is not None else _SharedSizes(len(self))

    def __len__(self) -> int:
        return len(self._names)

    def name(self, index: int) -> str:
        """The path below the folder, with forward slashes."""
        return self._names[index]

    def read(self, index: int) -> NDArray[np.uint8]:
        """The image, uint8 `[h, w, 1 or 3]`; raises `DecodeError`."""
        if self._cache is not None and (kept := self._cache.get(index)) is not None:
            return kept
        image = self._decode(index)
        if self._cache is not None:
            self._cache.put(index, image)
        if self._sizes is not None:
            self._sizes.put(index, image)
        return image

    def known_sizes(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        """Height and width of images read before, `[b, 2]`; zeros where they are not kept."""
        if self._sizes is None:
            return np.zeros((len(indices), 2), dtype=np.int64)
        return self._sizes.get(indices)

    def read_top(self, index: int, top: TopRows) -> NDArray[np.uint8]:
        """The image at its full size, black perhaps below the rows asked for; raises `DecodeError`."""
        return self._decode(index, top)

    def fingerprint(self) -> dict[str, object]:
        """Folder, number of images and classes, and a digest of the names."""
        return {
            "kind": "folder",
            "path": os.path.abspath(self.path),
            "num_samples": len(self),
            "num_classes": len(self.classes),
            "min_size": self.min_size,
            "names_sha256": self._names.digest(),
        }

    def __getstate__(self) -> dict[str, Any]:
        # A spawned worker cannot inherit the shared memory; it reads from the disk.
        return {**self.__dict__, "_cache": None, "_sizes": None}

    def _decode(self, index: int, top: TopRows | None = None) -> NDArray[np.uint8]:
        return decode_image(os.path.join(self.path, self._names[index]), self.min_size, top)

    def _look(self) -> list[tuple[int, ...]]:
        shapes = []
        for index in np.unique(np.linspace(0, len(self) - 1, _NUM_LOOKED_AT).astype(int)):
            try:
                shapes.append(self._decode(int(index)).shape)
            except DecodeError:  # counted when it is asked for
                continue
        return shapes


def _check_folder(path: str) -> None:
    if not os.path.exists(path):
        raise DataError(f"{path!r} does not exist. Give a folder of images, or an .npz or .npy file.")
    if path.lower().endswith((*VIDEO_EXTENSIONS, ".csv", ".tsv")) and not os.path.isdir(path):
        raise DataError(f"{path!r} names videos, and images are wanted. {_FOR_VIDEOS}")
    if not os.path.isdir(path):
        raise DataError(f"{path!r} is neither a folder of images nor an .npz or .npy file.")


def _no_images(path: str) -> str:
    looked = f"looked for {', '.join(EXTENSIONS)} at any depth"
    if len(index_folder(path, VIDEO_FILES).names):
        return f"{path!r} holds videos and no images ({looked}). {_FOR_VIDEOS}"
    return f"{path!r} holds no images ({looked})."


class _SharedCache:
    # Anonymous shared memory, inherited by forked workers; pages are taken when they are first written.
    # The lock orders pixels before the flag that announces them, on processors that reorder writes.
    def __init__(self, num: int, shape: tuple[int, ...]) -> None:
        self._images = np.frombuffer(mmap.mmap(-1, num * int(np.prod(shape))), dtype=np.uint8).reshape(
            num, *shape
        )
        self._filled = np.frombuffer(mmap.mmap(-1, num), dtype=np.uint8)
        self._lock = multiprocessing.Lock()

    def get(self, index: int) -> NDArray[np.uint8] | None:
        with self._lock:
            filled = self._filled[index]
        return self._images[index] if filled else None

    def put(self, index: int, image: NDArray[np.uint8]) -> None:
        if image.shape == self._images.shape[1:]:
            self._images[index] = image
            with self._lock:
                self._filled[index] = 1


class _SharedSizes:
    # Height and width of an image in one word, so that no reader sees half of them; 0 is not known. JPEG allows
    # no more than 16 bits for either, and only of JPEGs are rows left out.
    def __init__(self, num: int) -> None:
        self._words = np.frombuffer(mmap.mmap(-1, 4 * num), dtype=np.uint32)

    def get(self, indices: NDArray[np.int64]) -> NDArray[np.int64]:
        words = self._words[indices].astype(np.int64)
        return np.stack([words >> 16, words & 0xFFFF], axis=1)

    def put(self, index: int, image: NDArray[np.uint8]) -> None:
        height, width = image.shape[:2]
        if max(height, width) <= 0xFFFF:
            self._words[index] = height << 16 | width

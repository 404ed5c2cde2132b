"""Images that lie in an array: .npz, .npy or in memory."""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from torchjepa.data.errors import DataError, DecodeError

_IMAGE_KEYS = ("images", "x", "arr_0")
_LABEL_KEYS = ("labels", "y", "arr_1")
_CHANNELS = (1, 3, 4)
_NPY_MAGIC = b"\x93NUMPY"


class ArraySource:
    """Images of one size in an array: uint8, uint16 (divided by 257) or floating point in [0, 1] (times 255).

    An .npy file, and an .npz file that was written without compression, is mapped into memory, not loaded.

    Args:
        data: an .npz file (images under `images`, `x` or `arr_0`; labels, if any, under `labels`, `y` or
            `arr_1`), an .npy file, an array, or a mapping with the keys of an .npz file. Shape `[n, h, w]`,
            `[n, h, w, c]` or `[n, c, h, w]`; labels are integers (-1: none) or strings, `[n]`.
        layout: where the channels are. `None` takes the one axis, second or last, that is 1, 3 or 4 long.

    Raises:
        DataError: the file cannot be read, or shape, type or values are none of the above.
    """

    def __init__(
        self,
        data: str | os.PathLike[str] | ArrayLike | Mapping[str, ArrayLike],
        *,
        layout: Literal["nhwc", "nchw"] | None = None,
    ) -> None:
        self._path = os.fspath(data) if isinstance(data, str | os.PathLike) else None
        self._layout: Literal["nhwc", "nchw"] | None = layout
        self._where = repr(self._path) if self._path is not None else "the array"
        arrays = _load(self._path) if self._path is not None else _name_arrays(data)
        images, labels = _pick(arrays, _IMAGE_KEYS), _pick(arrays, _LABEL_KEYS)
        if images is None:
            raise DataError(
                f"{self._where} has no {' or '.join(_IMAGE_KEYS)}; it has {', '.join(arrays) or 'nothing'}."
            )
        self._images = _arrange(images, layout, self._where)
        self.num_channels: int = self._images.shape[3]
        self._check_values()
        self.classes, self.labels = _read_labels(labels, len(self), self._where)

    def __len__(self) -> int:
        return len(self._images)

    def name(self, index: int) -> str:
        """The index, as text."""
        return str(index)

    def read(self, index: int) -> NDArray[np.uint8]:
        """The image, uint8 `[h, w, c]`; raises `DecodeError` for floats that are not in [0, 1]."""
        image = self._images[index]
        if image.dtype == np.uint8:
            return np.asarray(image)
        if image.dtype == np.uint16:
            return np.round(image / 257.0).astype(np.uint8)
        if not (image.min() >= 0 and image.max() <= 1):
            raise DecodeError(f"values from {image.min():.4g} to {image.max():.4g}, expected [0, 1]")
        return np.round(image.astype(np.float32) * 255).astype(np.uint8)

    def fingerprint(self) -> dict[str, object]:
        """File, shape, type, and a digest of up to 64 images spread evenly and of the labels."""
        digest = hashlib.sha256(self.labels.tobytes())
        for index in self._spread(64):
            digest.update(np.ascontiguousarray(self._images[index]).tobytes())
        return {
            "kind": "array",
            "path": None if self._path is None else os.path.abspath(self._path),
            "num_samples": len(self),
            "shape": list(self._images.shape),
            "dtype": str(self._images.dtype),
            "sample_sha256": digest.hexdigest(),
        }

    def __reduce__(self) -> str | tuple[Any, ...]:
        # A mapped file is opened again by a spawned worker instead of being copied to it.
        if self._path is None:
            return super().__reduce__()
        return _reopen, (self._path, self._layout)

    def _spread(self, num: int) -> NDArray[np.int64]:
        return np.unique(np.linspace(0, len(self) - 1, num).astype(np.int64))

    def _check_values(self) -> None:
        kind = self._images.dtype
        if kind not in (np.uint8, np.uint16) and not np.issubdtype(kind, np.floating):
            raise DataError(
                f"{self._where}: images of type {kind}; expected uint8, uint16 or floating point in [0, 1] "
                "(for whole numbers from 0 to 255: images.astype('uint8'))."
            )
        if np.issubdtype(kind, np.floating):
            looked = self._images[self._spread(64)]
            if not (looked.min() >= 0 and looked.max() <= 1):
                raise DataError(
                    f"{self._where}: floating-point images must be in [0, 1], got {looked.min():.4g} to "
                    f"{looked.max():.4g}; divide them by their maximum, or store uint8."
                )


def _reopen(path: str, layout: Literal["nhwc", "nchw"] | None) -> ArraySource:
    return ArraySource(path, layout=layout)


def _name_arrays(data: Any) -> dict[str, NDArray[Any]]:
    named = data if isinstance(data, Mapping) else {"images": data}
    return {key: np.asarray(value) for key, value in named.items()}


def _pick(arrays: Mapping[str, NDArray[Any]], keys: tuple[str, ...]) -> NDArray[Any] | None:
    return next((arrays[key] for key in keys if key in arrays), None)


def _load(path: str) -> dict[str, NDArray[Any]]:
    if not os.path.exists(path):
        raise DataError(f"{path!r} does not exist. Give a folder of images, or an .npz or .npy file.")
    try:
        if path.lower().endswith(".npz"):
            return _load_npz(path)
        with open(path, "rb") as file:  # of any other file np.load says that it is pickled
            if file.read(len(_NPY_MAGIC)) != _NPY_MAGIC:
                raise DataError(f"{path!r} is not a readable NumPy file: it does not begin like one.")
        return {"images": np.load(path, mmap_mode="r", allow_pickle=False)}
    except DataError:
        raise
    except PermissionError as error:
        raise DataError(f"{path!r} cannot be read: permission denied.") from error
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        if "object" in str(error).lower():
            raise DataError(
                f"{path!r} holds Python objects (a pickle), not numbers; it is not opened."
            ) from error
        raise DataError(f"{path!r} is not a readable NumPy file: {str(error).rstrip('.')}.") from error


def _load_npz(path: str) -> dict[str, NDArray[Any]]:
    wanted = {*_IMAGE_KEYS, *_LABEL_KEYS}
    with zipfile.ZipFile(path) as archive:
        members = {member.filename.removesuffix(".npy"): member for member in archive.infolist()}
        stored = {
            key: _map_member(path, archive, member)
            for key, member in members.items()
            if key in wanted and member.compress_type == zipfile.ZIP_STORED
        }
    with np.load(path, allow_pickle=False) as file:
        return {
            key: stored[key] if key in stored else file[key] if key in wanted else np.empty(0)
            for key in members
        }


def _map_member(path: str, archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> NDArray[Any]:
    # An uncompressed member is an .npy file at an offset: header read through the archive, pixels mapped.
    with archive.open(member) as file:
        version = np.lib.format.read_magic(file)
        read_header = (
            np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        )
        shape, fortran, dtype = read_header(file)
        header_length = file.tell()
    if dtype.hasobject:
        raise ValueError("an array of objects")
    if 0 in shape:
        return np.empty(shape, dtype)
    with open(path, "rb") as raw:
        raw.seek(member.header_offset + 26)
        name_length, extra_length = np.frombuffer(raw.read(4), dtype="<u2")
    offset = member.header_offset + 30 + int(name_length) + int(extra_length) + header_length
    return np.memmap(path, dtype=dtype, mode="r", offset=offset, shape=shape, order="F" if fortran else "C")


def _arrange(images: NDArray[Any], layout: str | None, where: str) -> NDArray[Any]:
    shape = images.shape
    if images.ndim not in (3, 4) or 0 in shape:
        raise DataError(
            f"{where}: images of shape {list(shape)}; expected [n, h, w], [n, h, w, c] or [n, c, h, w]."
        )
    if images.ndim == 3:
        return images[:, :, :, None]
    if layout is None:
        first, last = shape[1] in _CHANNELS, shape[3] in _CHANNELS
        if first == last:
            many = "both the second and the last axis" if first else "neither the second nor the last axis"
            raise DataError(
                f"{where}: images of shape {list(shape)}: {many} could be the channels (1, 3 or 4). "
                "Say layout='nhwc' or layout='nchw', or store [n, h, w] for gray and [n, h, w, 3] for colour."
            )
        layout = "nchw" if first else "nhwc"
    return images if layout == "nhwc" else images.transpose(0, 2, 3, 1)


def _read_labels(
    labels: NDArray[Any] | None, num: int, where: str
) -> tuple[tuple[str, ...], NDArray[np.int64]]:
    if labels is None:
        return (), np.full(num, -1, dtype=np.int64)
    labels = np.asarray(labels)
    if labels.shape == (num, 1):  # some published files keep the column
        labels = labels[:, 0]
    if labels.shape != (num,) or labels.dtype.kind not in "iuUS":
        raise DataError(
            f"{where}: labels of shape {list(labels.shape)} and type {labels.dtype}; "
            f"expected {num} integers or strings."
        )
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8")
    values = [value for value in np.unique(labels) if labels.dtype.kind == "U" or value != -1]
    indices = np.searchsorted(values, labels) if values else np.zeros(num, dtype=np.int64)
    known = labels != -1 if labels.dtype.kind in "iu" else np.full(num, True)
    return tuple(str(value) for value in values), np.where(known, indices, -1).astype(np.int64)

"""Opens weight files of strangers: what is in them is listed first, and read, mapped, only when asked for."""

from __future__ import annotations

import json
import math
import mmap
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import torch
from torch import Tensor

from torchjepa.hub.contents import Contents, Entry, one_line
from torchjepa.hub.pickles import conversion_of_legacy, read_pickle
from torchjepa.hub.records import MAX_TABLE
from torchjepa.hub.safetensor_files import read_safetensors

# safetensors first: where a folder has both, the pickle is the older copy.
_IN_FOLDERS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
_LEGACY = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


@dataclass(frozen=True)
class TensorFile:
    """A weight file, opened: names, shapes and dtypes are known, values are read when asked for.

    Made by `open_tensors`. Names are full dotted paths (`target_encoder.module.backbone.norm.weight`).

    Args:
        path: the file or folder.
        format: how it is written.
        other: what is not a tensor, by full dotted path: epoch, learning rate, safetensors' metadata.
    """

    path: Path
    format: Literal["pickle", "safetensors"]
    other: Mapping[str, Any]
    _entries: Mapping[str, Entry] = field(repr=False)
    _verified: set[tuple[Path, int]] = field(default_factory=set, repr=False, compare=False)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors, in the order of the file."""
        return tuple(self._entries)

    @property
    def num_bytes(self) -> int:
        """Bytes of all tensors together; one that has several names counts once for each."""
        return sum(entry.tensor.numel() * entry.tensor.element_size() for entry in self._entries.values())

    @property
    def files(self) -> tuple[Path, ...]:
        """The files that hold the values: one, or those that an index names."""
        return tuple(dict.fromkeys(entry.region.path for entry in self._entries.values() if entry.region))

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it."""
        return tuple(self._entry(name).tensor.shape)

    def dtype(self, name: str) -> torch.dtype:
        """The dtype of a tensor, without reading it."""
        return self._entry(name).tensor.dtype

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All shapes by name: what a family is told from."""
        return {name: tuple(entry.tensor.shape) for name, entry in self._entries.items()}

    def parts(self) -> dict[str, tuple[str, ...]]:
        """The names of each top-level group: `encoder`, `target_encoder`, `classifiers.0`; "" for a flat file."""
        groups: dict[str, list[str]] = {}
        for name, entry in self._entries.items():
            groups.setdefault(entry.part, []).append(name)
        return {part: tuple(names) for part, names in groups.items()}

    def read(self, name: str, *, copy: bool = False) -> Tensor:
        """A tensor's values, of the file's dtype.

        Args:
            name: one of `names`.
            copy: read into memory of its own, so that no page of the file stays mapped; for values that are converted
                or merged, whose pages would otherwise count twice. By default the tensor is the mapped file itself:
                a page is read when touched, and writing to it changes this process only.

        Raises:
            ValueError: there is no such tensor, or its bytes do not match the file's checksum.
        """
        entry = self._entry(name)
        region = entry.region
        if region is not None and (region.path, region.start) not in self._verified:
            region.verify()
            self._verified.add((region.path, region.start))
        return _read_copy(entry) if copy else entry.tensor

    def _entry(self, name: str) -> Entry:
        if name not in self._entries:
            few = ", ".join(list(self._entries)[:3])
            raise ValueError(f"{self.path} has no tensor {name!r}; it has {len(self._entries)}: {few}, ...")
        return self._entries[name]


def _read_copy(entry: Entry) -> Tensor:
    tensor, region = entry.tensor, entry.region
    if region is None or not tensor.numel() or not tensor.is_contiguous():
        return tensor.clone()
    # Pages of its own and not of the heap: pieces that are freed between others that stay leave holes there, which
    # cost a ViT-H of transformers 360 MB.
    memory = mmap.mmap(-1, tensor.numel() * tensor.element_size(), access=mmap.ACCESS_COPY)
    with region.path.open("rb") as file:
        file.seek(region.start + int(tensor.storage_offset()) * tensor.element_size())
        file.readinto(memory)
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape)


def open_tensors(path: str | Path) -> TensorFile:
    """Open a weight file without reading its values; nothing in it is run or imported.

    Args:
        path: a safetensors file, a file of `torch.save` (`.pth.tar`, `.pt`, `.pth`, `.bin`), or a folder with
            `model.safetensors` or `pytorch_model.bin`, whole or in the pieces that an index names. What a file is
            is told from its first bytes, not from its name.

    Raises:
        ValueError: there is no such file, it is of no known format, damaged, cut short, states more than it holds, or
            needs code to be read; the message says how it can be converted.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}.")
    contents = _open_folder(path) if path.is_dir() else _open_file(path)
    return TensorFile(path, contents.format, MappingProxyType(dict(contents.other)), contents.entries)


def _open_folder(folder: Path) -> Contents:
    for name in _IN_FOLDERS:
        if (folder / name).is_file():
            return _open_pieces(folder / name) if name.endswith(".json") else _open_file(folder / name)
    raise ValueError(f"{folder} holds no weights; expected one of {', '.join(_IN_FOLDERS)} in it.")


def _open_pieces(index: Path) -> Contents:
    places = _read_index(index)
    entries: dict[str, Entry] = {}
    pieces = [_open_file(index.parent / piece) for piece in sorted(set(places.values()))]
    for piece, contents in zip(sorted(set(places.values())), pieces):
        expected = {name for name, place in places.items() if place == piece}
        wrong = sorted(expected ^ contents.entries.keys())
        if wrong:
            raise ValueError(
                f"{index} and {piece} disagree on {len(wrong)} tensors, {wrong[0]!r} for one. Fetch both again."
            )
        entries.update(contents.entries)
    return Contents(pieces[0].format, entries, {})


def _read_index(index: Path) -> dict[str, str]:
    if index.stat().st_size > MAX_TABLE:
        raise ValueError(f"{index} has {index.stat().st_size} bytes; at most {MAX_TABLE} are read.")
    try:
        places = json.loads(index.read_bytes())["weight_map"]
        pieces = set(places.values())
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is not an index of weights ({one_line(error)}).") from None
    for piece in pieces:
        # A name with folders in it would lead out of this one.
        if not isinstance(piece, str) or Path(piece).name != piece or not (index.parent / piece).is_file():
            raise ValueError(
                f"{index} names the file {str(piece)[:80]!r}, which is not beside it. Fetch it too."
            )
    if not pieces:
        raise ValueError(f"{index} names no file.")
    return places


def _open_file(path: Path) -> Contents:
    if not path.is_file():
        raise ValueError(f"{path} is not a regular file.")
    with path.open("rb") as file:
        start = file.read(64)
    if start.startswith(b"PK"):
        return read_pickle(path)
    if start[8:9] == b"{":
        return read_safetensors(path)
    raise ValueError(f"{path} {_what_it_is(path, start)}")


def _what_it_is(path: Path, start: bytes) -> str:
    if not start:
        return "is empty."
    if start.startswith(b"version https://git-lfs"):
        return "is a pointer of Git LFS and not the file itself; run `git lfs pull` beside it."
    if start.lstrip().lower().startswith((b"<!doctype", b"<html")):
        return "is a web page; the download got the page about the file."
    if start.startswith(_LEGACY):
        return (
            "is of torch's format before 1.6, whose sizes cannot be checked before memory is taken; write it anew: "
            f"{conversion_of_legacy(path)}"
        )
    return "is neither a file of torch.save nor a safetensors file; expected .pth.tar, .pt, .bin or .safetensors."


def refuse_non_finite(tensors: Mapping[str, Tensor], source: str | Path) -> None:
    """Refuse weights that are NaN or infinite.

    Args:
        tensors: by name, any dtype; those that hold no floating numbers pass.
        source: where they come from, for the message.

    Raises:
        ValueError: names the first three that hold such a value.
    """
    bad = [name for name, tensor in tensors.items() if not _is_finite(tensor)]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"{source} holds NaN or infinite values in {', '.join(bad[:3])}{more}: the file is damaged or its training "
            "diverged; nothing was loaded."
        )


def _is_finite(tensor: Tensor) -> bool:
    if not tensor.is_floating_point() or not tensor.numel():
        return True
    if tensor.element_size() == 1:  # float8 has no minimum of its own
        tensor = tensor.to(torch.float16)
    low, high = torch.aminmax(tensor)  # NaN wins in both; one pass, no copy
    return math.isfinite(low.item()) and math.isfinite(high.item())


def refuse_wrong_dtypes(
    tensors: Mapping[str, Tensor], wanted: Mapping[str, Tensor], source: str | Path
) -> None:
    """Refuse tensors that a model could only take by changing what they mean.

    Floating weights may come as float64, float32, float16 or bfloat16; whole numbers and booleans must be such.

    Args:
        tensors: from the file, by the model's names.
        wanted: the model's `state_dict`.
        source: where they come from, for the message.

    Raises:
        ValueError: names the first three.
    """
    bad = [
        f"{name} ({tensor.dtype}, the model has {wanted[name].dtype})"
        for name, tensor in tensors.items()
        if name in wanted and not _fits(tensor.dtype, wanted[name].dtype)
    ]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise ValueError(
            f"{source} holds tensors of the wrong dtype: {', '.join(bad[:3])}{more}; nothing was loaded."
        )


def _fits(stored: torch.dtype, wanted: torch.dtype) -> bool:
    if wanted.is_floating_point:
        return stored in _FLOATS
    return (
        not stored.is_floating_point
        and not stored.is_complex
        and (stored is torch.bool) == (wanted is torch.bool)
    )

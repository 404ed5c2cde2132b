"""What both file formats are read into: tensors by name, mapped and not read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from torchjepa.hub.records import Region

_LONGEST_NAME = 512


@dataclass(frozen=True)
class Entry:
    """One tensor of a file.

    Args:
        tensor: its values, mapped: a page of the file is read when it is touched.
        part: the top-level group that it belongs to, "" for none.
        region: where its storage lies in the file; none where it is empty.
    """

    tensor: Tensor
    part: str
    region: Region | None


@dataclass(frozen=True)
class Contents:
    """What a file holds.

    Args:
        format: how it is written.
        entries: the tensors by their full dotted path, in the order of the file.
        other: what is not a tensor, by its full dotted path.
    """

    format: Literal["pickle", "safetensors"]
    entries: Mapping[str, Entry]
    other: Mapping[str, Any]


def check_name(path: Path, name: str) -> None:
    """Refuse a name that would spoil a terminal or a table.

    Args:
        path: of the file, for the message.
        name: a dotted path.

    Raises:
        ValueError: it is longer than 512 characters or holds control characters.
    """
    if len(name) > _LONGEST_NAME or not name.isprintable():
        raise ValueError(f"{path} names a value {name[:60]!r} ({len(name)} characters); it was not read.")


def one_line(error: object) -> str:
    """The first line of a message that a file may have had a hand in, short and printable.

    Args:
        error: an exception, or text.
    """
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return "".join(letter if letter.isprintable() else "?" for letter in text)[:200]

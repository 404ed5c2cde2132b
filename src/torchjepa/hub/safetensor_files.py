"""Safetensors files, mapped: the format's own library checks the header, the values stay in the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from torchjepa.hub.contents import Contents, Entry, check_name, one_line
from torchjepa.hub.records import MAX_TABLE, Region

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


def read_safetensors(path: Path) -> Contents:
    """The tensors of a safetensors file, mapped and not read, and its metadata.

    Args:
        path: the file.

    Raises:
        ValueError: the header lies (shapes, offsets or sizes that do not belong together), is too large, or
            names a dtype that torch does not have.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > MAX_TABLE or length + 8 > size:
            raise ValueError(
                f"{path} states a header of {length} bytes in a file of {size}; it is damaged or no safetensors file."
            )
        header = _parse(path, file.read(length))
    try:
        with safe_open(path, "pt"):
            pass
    except (SafetensorError, OSError, ValueError) as error:
        raise ValueError(
            f"{path} is damaged or its header lies ({one_line(error)}). Fetch it again."
        ) from None
    metadata = header.pop("__metadata__", None) or {}
    for name in (*header, *metadata):
        check_name(path, name)
    if not header or size == length + 8:
        return Contents("safetensors", {name: _empty(path, name, header[name]) for name in header}, metadata)
    storage = cast(torch.UntypedStorage, torch.UntypedStorage.from_file(str(path), False, size))
    return Contents(
        "safetensors",
        {name: _entry(path, name, header[name], storage, 8 + length) for name in _in_order(header)},
        metadata,
    )


def _parse(path: Path, text: bytes) -> dict[str, Any]:
    try:
        header = json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is damaged or no safetensors file: its header cannot be read ({one_line(error)})."
        ) from None
    if not isinstance(header, dict):
        raise ValueError(f"{path} is no safetensors file: its header is a {type(header).__name__}.")
    return header


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Of two entries of one name each reader takes the one it likes.
    values = dict(pairs)
    if len(values) < len(pairs):
        raise ValueError("it names something twice")
    return values


def _in_order(header: dict[str, Any]) -> list[str]:
    return sorted(header, key=lambda name: header[name]["data_offsets"][0])


def _dtype(path: Path, name: str, spec: dict[str, Any]) -> torch.dtype:
    if spec["dtype"] not in _DTYPES:
        raise ValueError(f"{path}: {name} has dtype {spec['dtype']}; torch reads {', '.join(_DTYPES)}.")
    return _DTYPES[spec["dtype"]]


def _empty(path: Path, name: str, spec: dict[str, Any]) -> Entry:
    return Entry(torch.empty(spec["shape"], dtype=_dtype(path, name, spec)), "", None)


def _entry(path: Path, name: str, spec: dict[str, Any], storage: torch.UntypedStorage, base: int) -> Entry:
    dtype = _dtype(path, name, spec)
    start, end = (base + offset for offset in spec["data_offsets"])
    if start == end:
        return _empty(path, name, spec)
    piece = torch.empty(0, dtype=torch.uint8).set_(storage[start:end], 0, (end - start,), (1,))
    values: Tensor = piece.view(dtype).view(spec["shape"])
    return Entry(values, "", Region(path, start, end - start))

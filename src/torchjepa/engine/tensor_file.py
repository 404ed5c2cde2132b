"""Writes safetensors one tensor at a time, so that a file takes the memory of its largest tensor."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def write_tensors(
    path: Path | None, tensors: Mapping[str, Tensor], fetch: Callable[[Tensor], Tensor]
) -> None:
    """Write a safetensors file that any reader of the format takes.

    Args:
        path: the file; `None` fetches every tensor in the same order and writes nothing, for the other processes.
        tensors: by name; they may share memory, each is written out.
        fetch: gives the values of a tensor when its turn comes, on any device.

    Raises:
        ValueError: a dtype that the format does not have, or a machine with the other byte order.
    """
    # Wide types first, as the format's own writer has it: every tensor then starts at a multiple of its item size.
    names = sorted(tensors, key=lambda name: -tensors[name].element_size())
    if path is None:
        for name in names:
            fetch(tensors[name])
        return
    header = _header({name: tensors[name] for name in names})
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for name in names:
            values = fetch(tensors[name]).detach().cpu().contiguous()
            if values.numel():
                file.write(values.reshape(-1).view(torch.uint8).numpy().data)


def _header(tensors: Mapping[str, Tensor]) -> bytes:
    if sys.byteorder != "little":
        raise ValueError("safetensors files are little-endian, and this machine is not.")
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, tensor in tensors.items():
        if tensor.dtype not in _DTYPES:
            known = ", ".join(str(dtype) for dtype in _DTYPES)
            raise ValueError(f"safetensors cannot hold {name!r} of dtype {tensor.dtype}; it knows {known}.")
        start, end = end, end + tensor.numel() * tensor.element_size()
        entries[name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [start, end],
        }
    text = json.dumps(entries, separators=(",", ":"), ensure_ascii=False).encode()
    return text + b" " * (-len(text) % 8)

"""Files that a stranger may send: each takes a path to write to."""

from __future__ import annotations

import json
import os
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch

RAN = "RAN"  # the file that code in a pickle would leave in the working folder

WEIGHTS = {
    "encoder": {"norm.weight": torch.arange(300.0), "norm.bias": torch.ones(300)},
    "epoch": 3,
}
# Pieces of pickles, protocol 2.
STORAGE = b"(X\x07\x00\x00\x00storagectorch\nFloatStorage\nX\x01\x00\x00\x000X\x03\x00\x00\x00cpu"
HOOKS = b"\x89ccollections\nOrderedDict\n)R"


class Runs:
    """Runs a command when it is unpickled."""

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"touch {RAN}",)


def torch_zip(
    path: Path, data: bytes, *, storage: bytes = bytes(64), compression: int = zipfile.ZIP_STORED
) -> None:
    """A zip file laid out as torch.save does, with this pickle."""
    with zipfile.ZipFile(path, "w", compression) as file:
        file.writestr("x/data.pkl", data)
        file.writestr("x/byteorder", "little")
        file.writestr("x/data/0", storage)
        file.writestr("x/version", "3\n")


def tensor_pickle(
    num_stored: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0
) -> bytes:
    """A pickle of `{"w": tensor}` with any sizes."""
    numbers = lambda values: b"(" + b"".join(number(value) for value in values) + b"t"  # noqa: E731
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + number(num_stored) + b"tQ" + number(offset)
    tensor += numbers(shape) + numbers(strides) + HOOKS + b"tR"
    return b"\x80\x02}X\x01\x00\x00\x00w" + tensor + b"s."


def number(value: int) -> bytes:
    data = pickle.encode_long(value) or b"\x00"
    return b"\x8a" + bytes([len(data)]) + data


def safetensors(path: Path, header: object, data: bytes = b"", length: int | None = None) -> None:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text) if length is None else length) + text + data)


def entry(dtype: str, shape: list[int], start: int, end: int) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def calls(function: str, arguments: bytes) -> bytes:
    """A pickle of a call."""
    module, _, name = function.rpartition(".")
    return b"\x80\x02c" + f"{module}\n{name}\n".encode() + arguments + b"R."


def saved(path: Path, value: object, **options: object) -> None:
    torch.save(value, path, **options)


def bomb(path: Path, name: str) -> None:
    """64 MiB of zeros, deflated, as this record."""
    zeros = bytes(2**20)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        if name != "data.pkl":
            file.writestr("x/data.pkl", tensor_pickle(2**24, (2**24,), (1,)), zipfile.ZIP_STORED)
        with file.open(f"x/{name}", "w") as record:
            for _ in range(64):
                record.write(zeros)


def overlapping(path: Path) -> None:
    """A directory that names one record a thousand times."""
    torch_zip(path, b"\x80\x02}.", storage=bytes(2**20))
    text = bytearray(path.read_bytes())
    start = text.index(b"PK\x01\x02", text.index(b"PK\x01\x02", text.index(b"PK\x01\x02") + 1) + 1)
    record = bytes(text[start : start + 46 + len("x/data/0")])
    records = b"".join(record.replace(b"x/data/0", b"x/d%05d" % index) for index in range(1000))
    first = text.index(b"PK\x01\x02")
    body = bytes(text[:start]) + records
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 1002, 1002, len(body) - first, first, 0)
    path.write_bytes(body + end)


def doubling(path: Path) -> None:
    """Lists that hold the list before twice: 2 ** 60 leaves."""
    data = b"\x80\x02]q\x00(K\x01K\x01e"
    for index in range(1, 60):
        before = b"h" + bytes([index - 1])
        data += b"]q" + bytes([index]) + b"(" + before + before + b"e"
    torch_zip(path, data + b".")


def copying(path: Path) -> None:
    """A dictionary of a long list, copied 50,000 times."""
    long = b"(" + b"N" * 100_000 + b"tq\x00"
    copies = b"(" + b"ctorch\nSize\nh\x00\x85R" * 50_000 + b"e"
    torch_zip(path, b"\x80\x02" + b"]" + b"(" + long + b"e" + copies + b".")


def hexes(path: Path) -> None:
    """Text that a codec doubles 40 times."""
    data = b"X\x04\x00\x00\x00abcdX\x05\x00\x00\x00latin"
    data = b"\x80\x02" + b"c_codecs\nencode\n" * 41 + data.replace(b"latin", b"ascii") + b"\x86R"
    torch_zip(path, data + b"X\x03\x00\x00\x00hex\x86R" * 40 + b".")


def index_outside(folder: Path) -> None:
    folder.mkdir()
    saved(folder.parent / "outside.pt", WEIGHTS)
    index = {"weight_map": {"w": "../outside.pt"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


HOSTILE: dict[str, tuple[Callable[[Path], object], str]] = {
    "code in a torch zip": (lambda path: saved(path, {"w": torch.ones(3), "x": Runs()}), "posix.system"),
    "code, protocol 4": (lambda path: torch_zip(path, pickle.dumps(Runs(), 4)), "posix.system"),
    "code, a built-in": (
        lambda path: torch_zip(path, calls("builtins.eval", b"X\x01\x00\x00\x001\x85")),
        "eval",
    ),
    "code, a plain pickle": (lambda path: path.write_bytes(pickle.dumps(Runs())), "neither"),
    "code, torch's old format": (
        lambda path: saved(path, Runs(), _use_new_zipfile_serialization=False),
        "before 1.6",
    ),
    "a whole module": (lambda path: saved(path, torch.nn.Linear(2, 2)), "torch.nn.modules.linear.Linear"),
    "16 GB of bytearray": (
        lambda path: torch_zip(path, calls("builtins.bytearray", number(2**34) + b"\x85")),
        "byte",
    ),
    "16 GB of Tensor": (
        lambda path: torch_zip(path, calls("torch.Tensor", number(2**32) + b"\x85")),
        "torch.Tensor",
    ),
    "16 GB of storage": (
        lambda path: torch_zip(path, calls("torch.storage.UntypedStorage", number(2**34) + b"\x85")),
        "not to be called",
    ),
    "2 GB tensor in 1 KB": (
        lambda path: torch_zip(path, tensor_pickle(16, (2**29,), (1,))),
        "larger than what the file holds",
    ),
    "2 GB storage in 1 KB": (
        lambda path: torch_zip(path, tensor_pickle(2**29, (2**29,), (1,))),
        "larger than what the file holds",
    ),
    "a storage beyond its record": (lambda path: torch_zip(path, tensor_pickle(20, (20,), (1,))), "together"),
    "4 TB by a stride of 0": (
        lambda path: torch_zip(path, tensor_pickle(16, (2**40,), (0,))),
        "states 1099511627776",
    ),
    "a negative stride": (lambda path: torch_zip(path, tensor_pickle(16, (2,), (-1,))), "lies"),
    "an offset outside": (lambda path: torch_zip(path, tensor_pickle(16, (2,), (1,), 15)), "lies"),
    "a deflated pickle": (lambda path: bomb(path, "data.pkl"), "compressed"),
    "a deflated tensor": (lambda path: bomb(path, "data/0"), "compressed"),
    "a thousand records in one place": (overlapping, "its records state"),
    "a pickle of 9 MB": (lambda path: torch_zip(path, b"\x80\x02(" + b"]" * 9_000_000 + b"l."), "8388608"),
    "lists in lists": (doubling, "without end"),
    "one list, copied": (copying, "copies its own content"),
    "one text, doubled": (hexes, "copies its own content"),
    "a deep nest": (
        lambda path: torch_zip(path, b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b"."),
        "without end",
    ),
    "a long name": (lambda path: saved(path, {"a" * 10_000: torch.ones(2)}), "10000 characters"),
    "a name that moves the cursor": (lambda path: saved(path, {"\x1b[2Jw": torch.ones(2)}), "x1b[2Jw"),
    "two names that are one": (
        lambda path: saved(path, {"a.b": torch.ones(2), "a": {"b": torch.ones(2)}}),
        "twice",
    ),
    "header of 2 ** 63 bytes": (
        lambda path: safetensors(path, {}, length=2**63),
        "header of 9223372036854775808",
    ),
    "header beyond the file": (lambda path: safetensors(path, {}, bytes(8), length=300), "header of 300"),
    "header that is no JSON": (lambda path: safetensors(path, b"{" * 400), "cannot be read"),
    "header nested deep": (lambda path: safetensors(path, b'{"a":' * 100_000), "cannot be read"),
    "header with a name twice": (
        lambda path: safetensors(
            path, b'{"w":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"w":{"dtype":"F32"}}', bytes(4)
        ),
        "twice",
    ),
    "2 GB in a safetensors of 1 KB": (
        lambda path: safetensors(path, {"w": entry("F32", [2**29], 0, 2**31)}, bytes(1024)),
        "lies",
    ),
    "a shape that is not its bytes": (
        lambda path: safetensors(path, {"w": entry("F32", [2**29], 0, 1024)}, bytes(1024)),
        "lies",
    ),
    "overlapping tensors": (
        lambda path: safetensors(
            path, {"w": entry("F32", [4], 0, 16), "v": entry("F32", [4], 8, 24)}, bytes(24)
        ),
        "lies",
    ),
    "a negative offset": (
        lambda path: safetensors(path, {"w": entry("F32", [4], -16, 0)}, bytes(16)),
        "lies",
    ),
    "an unknown dtype": (lambda path: safetensors(path, {"w": entry("F31", [4], 0, 16)}, bytes(16)), "F31"),
    "an index that leads outside": (index_outside, "not beside it"),
    "a pipe": (lambda path: os.mkfifo(path), "regular"),
    "nothing": (lambda path: path.write_bytes(b""), "is empty"),
    "a web page": (lambda path: path.write_bytes(b"<!DOCTYPE html><title>Sign in</title>"), "web page"),
    "a pointer": (lambda path: path.write_bytes(b"version https://git-lfs.github.com/spec/v1\n"), "Git LFS"),
}

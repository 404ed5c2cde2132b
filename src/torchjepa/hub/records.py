"""The directory of a zip file that `torch.save` wrote, checked before anything is unpacked."""

from __future__ import annotations

import struct
import zipfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

MAX_TABLE = 8 * 2**20  # bytes of a directory, a pickle or a header; the released files have under 1 MiB
_CHUNK = 2**20
_DAMAGE = (zipfile.BadZipFile, struct.error, NotImplementedError, OverflowError)
_END, _END_64, _LOCATOR_64 = b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07"


@dataclass(frozen=True)
class Region:
    """Where bytes lie in a file.

    Args:
        path: the file.
        start: offset of the first byte.
        num_bytes: how many they are.
        crc: their CRC-32, where the file keeps one.
    """

    path: Path
    start: int
    num_bytes: int
    crc: int | None = None

    def verify(self) -> None:
        """Read the bytes once, in small pieces, and compare their checksum.

        Raises:
            ValueError: they are not the bytes that were written.
        """
        if self.crc is None:
            return
        found, left = 0, self.num_bytes
        with self.path.open("rb") as file:
            file.seek(self.start)
            while left and (piece := file.read(min(_CHUNK, left))):
                found, left = zlib.crc32(piece, found), left - len(piece)
        if left or found != self.crc:
            raise ValueError(
                f"{self.path} is damaged: {self.num_bytes} bytes at {self.start} do not match their checksum. "
                "Fetch it again."
            )

    def read(self) -> bytes:
        """The bytes, verified."""
        self.verify()
        with self.path.open("rb") as file:
            file.seek(self.start)
            return file.read(self.num_bytes)


def read_directory(path: Path) -> dict[str, Region]:
    """The records of a file that `torch.save` wrote, by name without the leading folder.

    Args:
        path: a zip file.

    Raises:
        ValueError: it is damaged, or holds what `torch.save` never writes: compressed or encrypted records, two of one
            name, records outside the file or larger together than it.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        _refuse_large_directory(path, file, size)
        try:
            infos = zipfile.ZipFile(file).infolist()
            starts = [_start(file, info) for info in infos]
        except (*_DAMAGE, ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged or cut short ({error}). Fetch it again.") from None
    folder = infos[0].filename.partition("/")[0] + "/" if infos else ""
    _refuse_foreign(path, infos, folder)
    _refuse_outside(path, infos, starts, size)
    unchecked = not any(info.CRC for info in infos)  # torch.serialization.set_crc32_options(False)
    return {
        info.filename.removeprefix(folder): Region(
            path, start, info.file_size, None if unchecked else info.CRC
        )
        for info, start in zip(infos, starts)
    }


def _refuse_large_directory(path: Path, file: BinaryIO, size: int) -> None:
    # zipfile reads the whole directory into memory, whatever size the file's last bytes state.
    file.seek(max(0, size - 98))
    tail = file.read(98)
    end = tail[-22:]
    if len(end) < 22 or end[:4] != _END or end[20:22] != b"\0\0":
        raise ValueError(f"{path} is cut short: it has no zip directory at its end. Fetch it again.")
    directory = int.from_bytes(end[12:16], "little")
    if tail[-42:-38] == _LOCATOR_64 and tail[:4] == _END_64:
        directory = int.from_bytes(tail[40:48], "little")
    if directory > MAX_TABLE:
        raise ValueError(f"{path} states a zip directory of {directory} bytes; at most {MAX_TABLE} are read.")


def _start(file: BinaryIO, info: zipfile.ZipInfo) -> int:
    file.seek(info.header_offset)
    header = file.read(30)
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise ValueError(f"no record at {info.header_offset}")
    name, extra = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    return info.header_offset + 30 + name + extra


def _refuse_foreign(path: Path, infos: list[zipfile.ZipInfo], folder: str) -> None:
    names = set()
    for info in infos:
        fault = None
        if info.compress_type != zipfile.ZIP_STORED or info.compress_size != info.file_size:
            fault = f"is compressed (to {info.compress_size} bytes from {info.file_size})"
        elif info.flag_bits & 1:
            fault = "is encrypted"
        # torch looks names up without regard to case.
        elif info.filename.lower() in names:
            fault = "is there twice"
        elif not info.filename.startswith(folder):
            fault = f"is outside of {folder!r}"
        if fault:
            raise ValueError(
                f"{path}: record {info.filename[:80]!r} {fault}; torch.save writes no such record, so it was not read."
            )
        names.add(info.filename.lower())


def _refuse_outside(path: Path, infos: list[zipfile.ZipInfo], starts: list[int], size: int) -> None:
    for info, start in zip(infos, starts):
        if start + info.file_size > size:
            raise ValueError(
                f"{path} is cut short: {info.filename[:80]!r} ends beyond the file. Fetch it again."
            )
    total = sum(info.file_size for info in infos)
    if total > size:
        raise ValueError(f"{path} has {size} bytes and its records state {total}; it was not read.")


def data_regions(directory: Mapping[str, Region]) -> list[Region]:
    """The records that hold the values of tensors, in the order of the file; empty ones are left out.

    Args:
        directory: of `read_directory`.
    """
    data = [region for name, region in directory.items() if name.startswith("data/") and region.num_bytes]
    return sorted(data, key=lambda region: region.start)

"""What can be wrong with data, and the list of what could not be decoded."""

from __future__ import annotations

import json
import os
from pathlib import Path


class DataError(ValueError):
    """Data that cannot be used: one line that says what is wrong; the commands exit with code 2."""


class DecodeError(DataError):
    """One sample that cannot be decoded."""


class WorkerKilledError(RuntimeError):
    """A process that loads data was killed, most often for want of memory."""


class ErrorLog:
    """Counts the samples that could not be decoded, lists each once, and refuses when they are too many.

    Args:
        path: the file to append to, one JSON line for each sample: part, id, name, error. Lines already there
            (of a run that goes on) count. `None` keeps the list in memory only.
        num_samples: number of samples in the set.
        max_fraction: share of the set that may fail, in [0, 1]; more is an error.
        part: the name of the set in the file, where several sets share one.

    Raises:
        ValueError: max_fraction outside [0, 1], or num_samples below 1.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        num_samples: int,
        max_fraction: float = 0.01,
        *,
        part: str = "train",
    ) -> None:
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"ErrorLog: max_fraction must be in [0, 1], got {max_fraction}.")
        if num_samples < 1:
            raise ValueError(f"ErrorLog: num_samples must be at least 1, got {num_samples}.")
        self.path = None if path is None else Path(path)
        self.num_samples = num_samples
        self.max_fraction = max_fraction
        self.part = part
        self._failed: dict[int, str] = {}
        self._read()

    def __len__(self) -> int:
        """Number of samples that could not be decoded."""
        return len(self._failed)

    def __contains__(self, index: int) -> bool:
        return index in self._failed

    def add(self, index: int, name: str, error: str) -> None:
        """Note a sample that could not be decoded; one already noted is passed over.

        Args:
            index: the sample's index in its set.
            name: the sample's name, a file path where there is one.
            error: what the decoder said.

        Raises:
            DataError: more than `max_fraction` of the set cannot be decoded; shows the first five.
        """
        if index in self._failed:
            return
        self._failed[index] = f"{name} ({error})"
        if self.path is not None:
            line = json.dumps({"part": self.part, "id": index, "name": name, "error": error})
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line + "\n")
        if len(self._failed) > self.max_fraction * self.num_samples:
            raise DataError(self._too_many())

    def _too_many(self) -> str:
        first = ", ".join(list(self._failed.values())[:5])
        listed = f" All of them are listed in {self.path}." if self.path is not None else ""
        return (
            f"{len(self._failed)} of the {self.num_samples} samples cannot be decoded, more than the "
            f"{self.max_fraction:.2%} allowed: {first}.{listed} Mend or remove them, or allow more."
        )

    def _read(self) -> None:
        if self.path is None or not self.path.exists():
            return
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:  # the last line of a killed run may be torn
                continue
            if row.get("part") == self.part:
                self._failed[row["id"]] = f"{row['name']} ({row['error']})"

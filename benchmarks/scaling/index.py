"""Opening a folder of images over its number of files: by walking through it, and from the kept index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.scaling.curve import Curve, growth_of

_SIZES = (1_000, 10_000, 100_000, 1_000_000)
_IN_A_FOLDER = 1_000
_AT_REST = 2.5  # seconds until a folder's time stamps are trusted


def curves() -> Iterator[Curve]:
    """Seconds and memory of a start in a process of its own; the files are empty, so nothing is decoded."""
    figures = ("walked seconds", "walked bytes", "kept seconds", "kept bytes", "held out seconds")
    yield Curve("folder's index over files", "files", _SIZES, _open_twice, dict.fromkeys(figures, 1.0))


def _open_twice(num_files: int) -> Mapping[str, float]:
    with tempfile.TemporaryDirectory() as top:
        folder = Path(top, "images")
        _fill(folder, num_files)
        time.sleep(_AT_REST)
        env = {**os.environ, "TORCHJEPA_CACHE": str(Path(top, "cache"))}
        command = [sys.executable, "-m", __spec__.name, str(folder)]  # type: ignore[name-defined]
        runs = [
            json.loads(subprocess.run(command, env=env, check=True, capture_output=True, text=True).stdout)
            for _ in range(2)
        ]
    figures = {
        f"{way} {key}": run[key] for way, run in zip(("walked", "kept"), runs) for key in ("seconds", "bytes")
    }
    return {**figures, "held out seconds": runs[1]["held out"], "process bytes": runs[0]["process"]}


def _fill(root: Path, num_files: int) -> None:
    for first in range(0, num_files, _IN_A_FOLDER):
        folder = root / f"n{first:08d}"
        folder.mkdir(parents=True)
        opened = os.open(folder, os.O_RDONLY)
        for index in range(first, min(first + _IN_A_FOLDER, num_files)):
            os.close(os.open(f"n{first:08d}_{index}.JPEG", os.O_CREAT | os.O_WRONLY, dir_fd=opened))
        os.close(opened)


def _child(folder: str) -> None:
    from torchjepa.data import FolderSource, open_data

    seconds: list[float] = []

    def timed(opened: Callable[[str], object]) -> float:
        start = time.perf_counter()
        opened(folder)
        return time.perf_counter() - start

    grown = growth_of(lambda: seconds.append(timed(FolderSource)))
    both = timed(open_data)
    with open("/proc/self/status") as file:
        process = next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))
    held_out = max(both - timed(FolderSource), 1e-6)
    print(json.dumps({"seconds": seconds[0], "bytes": grown, "held out": held_out, "process": process}))


if __name__ == "__main__":
    _child(sys.argv[1])

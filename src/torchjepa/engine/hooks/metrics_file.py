"""metrics.jsonl: one line for each row, there even after `kill -9`."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO

from torchjepa.engine.run import Run


class MetricsFile:
    """Appends every row to the run's `metrics.jsonl` and flushes it; NaN and infinity become null.

    On resume the lines of steps that will be done again are dropped, so that the file reads like that of an
    undisturbed run.
    """

    def __init__(self) -> None:
        self._file: TextIO | None = None

    def on_start(self, run: Run) -> None:
        """Drop what lies ahead and open the file."""
        drop_lines_from(run.folder.metrics, run.start_step)
        self._file = run.folder.metrics.open("a", encoding="utf-8")

    def on_log(self, step: int, row: Mapping[str, Any]) -> None:
        """Append one line."""
        if self._file is None:
            raise RuntimeError("MetricsFile: on_log was called before on_start.")
        self._file.write(json.dumps({name: _finite(value) for name, value in row.items()}) + "\n")
        self._file.flush()

    def on_end(self, run: Run) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()
            self._file = None


def drop_lines_from(path: Path, step: int) -> None:
    """Keep the lines of a `metrics.jsonl` that belong to steps before `step`; a torn last line goes too.

    Args:
        path: the file; may be missing.
        step: the first step whose lines go.
    """
    if not path.exists():
        return
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    kept = [line for line in lines if _is_before(line, step)]
    if kept == lines:
        return
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("w", encoding="utf-8") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)


def _is_before(line: str, step: int) -> bool:
    try:
        return line.endswith("\n") and int(json.loads(line)["step"]) < step
    except (ValueError, KeyError, TypeError):
        return False


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value

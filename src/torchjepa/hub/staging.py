"""Write beside a path, look at what was written, and only then put it in its place."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def staged(path: str | Path) -> Iterator[Path]:
    """A path of the same name in a temporary folder; what is written there and beside it moves at the end.

    Args:
        path: the file or folder that shall appear. What is there is replaced; an error leaves it as it was.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as temporary:
        yield Path(temporary) / path.name
        for entry in Path(temporary).iterdir():
            target = path.parent / entry.name
            if target.is_dir() and not target.is_symlink():
                shutil.rmtree(target)
            os.replace(entry, target)

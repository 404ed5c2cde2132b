"""Run what the README shows: `test-command` prints its test command, `run` executes every snippet.

Python blocks run in one fresh interpreter each; `bash` blocks run line by line in an empty folder that is shared,
in order, so that a later line may use what an earlier one wrote. A block under a `<!-- ci: ... -->` comment is
prepared (`setup: command` runs first) or left out with its reason (`skip: reason`), which is printed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

BLOCK = re.compile(r"(?:<!--\s*ci:(?P<note>.*?)-->\s*)?```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """(kind, note, body) of each fenced block."""
    found = BLOCK.finditer(path.read_text())
    return [(match["kind"], (match["note"] or "").strip(), match["body"].strip()) for match in found]


def test_command(path: Path) -> str:
    """The one line of the README that ends in pytest."""
    lines = [line for kind, _, body in blocks(path) if kind == "bash" for line in body.splitlines()]
    commands = [line for line in lines if line.endswith("&& pytest")]
    assert len(commands) == 1, f"expected one test command in {path}, found {commands}"
    return commands[0]


def run(path: Path) -> int:
    """Run every block; the number that failed."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, note, body in blocks(path):
            title = body.splitlines()[0]
            if kind not in ("python", "bash"):
                continue
            if note.startswith("skip:"):
                print(f"-- left out, {note[5:].strip()}: {title}", flush=True)
                continue
            script = body
            if note.startswith("setup:"):
                subprocess.run(["bash", "-euc", note[6:].strip()], cwd=folder, check=True)
            start = time.monotonic()
            print(f"-- {kind}: {title}", flush=True)
            command = (
                [sys.executable, "-c", script]
                if kind == "python"
                else ["bash", "-euo", "pipefail", "-c", script]
            )
            done = subprocess.run(command, cwd=folder, env={**os.environ, "COLUMNS": "100"})
            failures += done.returncode != 0
            print(
                f"   {'failed' if done.returncode else 'ok'} in {time.monotonic() - start:.0f} s", flush=True
            )
    return failures


if __name__ == "__main__":
    action, file = sys.argv[1], Path(sys.argv[2]).resolve()
    if action == "test-command":
        print(test_command(file))
    else:
        sys.exit(1 if run(file) else 0)

"""Run what the README shows: `test-command` prints its test command, `run` executes every snippet of the files given.

Several files run at once, as many as there are processors, each with its share of them; their output comes whole.

Python and `bash` blocks run one after the other, each in a fresh interpreter, in one empty folder, so that a later
one may use what an earlier one wrote; a bash block ends at its first line that fails. A block under a
`<!-- ci: ... -->` comment is prepared (`setup: command` runs first, with $REPOSITORY naming this repository), run as
another command (`instead: command`) or left out with its reason (`skip: reason`); both are printed.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

BLOCK = re.compile(r"(?:<!--\s*ci:(?P<note>.*?)-->\s*)?```(?P<kind>\w+)\n(?P<body>.*?)```", re.DOTALL)
COMMANDS = {"python": [sys.executable, "-c"], "bash": ["bash", "-euo", "pipefail", "-c"]}


def blocks(path: Path) -> list[tuple[str, str, str]]:
    """(kind, note, body) of each fenced block."""
    found = BLOCK.finditer(path.read_text())
    return [(match["kind"], (match["note"] or "").strip(), match["body"].strip()) for match in found]


def test_command(path: Path) -> str:
    """The one line of the README that installs and runs pytest."""
    lines = [line for kind, _, body in blocks(path) if kind == "bash" for line in body.splitlines()]
    commands = [line for line in lines if "&& pytest" in line]
    if len(commands) != 1:
        raise SystemExit(f"expected one test command in {path}, found {commands}")
    return commands[0]


def run(path: Path) -> int:
    """Run every block; the number that failed."""
    failures = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind, note, body in blocks(path):
            if kind not in COMMANDS or not body:
                continue
            title = f"{kind}: {body.splitlines()[0]}"
            if note.startswith("skip:"):
                print(f"-- left out, {note[5:].strip()}: {title}", flush=True)
                continue
            if note.startswith("instead:"):
                kind, body = "bash", note[8:].strip()
                title += f" (as {body})"
            print(f"-- {title}", flush=True)
            start = time.monotonic()
            good = run_block(kind, note, body, folder)
            failures += not good
            print(f"   {'ok' if good else 'failed'} in {time.monotonic() - start:.0f} s", flush=True)
    return failures


def run_block(kind: str, note: str, body: str, folder: str) -> bool:
    """Whether a block, and what its note says to run first, ends well."""
    scripts = [[*COMMANDS["bash"], note[6:].strip()]] if note.startswith("setup:") else []
    environment = {**os.environ, "COLUMNS": "100", "REPOSITORY": str(Path(__file__).resolve().parents[1])}
    return all(
        subprocess.run(script, cwd=folder, env=environment).returncode == 0
        for script in [*scripts, [*COMMANDS[kind], body]]
    )


def run_all(files: list[Path]) -> int:
    """Run every block of several files, a process for each; the number of files with a failure."""
    processors = os.cpu_count() or 1
    lanes = min(len(files), processors)
    environment = {"OMP_NUM_THREADS": str(processors // lanes), **os.environ}

    def run_one(file: Path) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, __file__, "run", str(file)]
        return subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )

    failures = 0
    with ThreadPoolExecutor(lanes) as pool:
        for file, done in zip(files, pool.map(run_one, files)):
            print(f"---- {file.name}\n{done.stdout}", flush=True)
            failures += done.returncode != 0
    return failures


def main(arguments: list[str]) -> int:
    """`test-command FILE` or `run FILE...`; the exit code."""
    action, *names = arguments or [""]
    files = [Path(name).resolve() for name in names]
    if not (action == "test-command" and len(files) == 1) and not (action == "run" and files):
        print("usage: readme.py test-command FILE | run FILE...", file=sys.stderr)
        return 2
    if action == "test-command":
        print(test_command(files[0]))
        return 0
    return 1 if (run(files[0]) if len(files) == 1 else run_all(files)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

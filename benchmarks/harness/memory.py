"""Peak memory of a call, in a process of its own.

python -m benchmarks.harness.memory MODULE:FUNCTION    prints the growth of the peak resident set in bytes
"""

from __future__ import annotations

import importlib
import os
import statistics
import subprocess
import sys
from pathlib import Path

_PROCESSES = 5


def peak_growth(function: str, threads: int = 2) -> int:
    """Bytes by which the peak resident set of a fresh process grows while a call runs, over what it had before.

    The median of five processes: from one to the next the heap has other holes, of up to a tenth of the whole.

    Args:
        function: `"module:function"`; the function prepares (model, inputs, one warm-up on something small) and
            returns the callable that is watched.
        threads: OpenMP threads.

    Raises:
        RuntimeError: the process failed; the end of what it said.
    """
    return round(statistics.median(_growth(function, threads) for _ in range(_PROCESSES)))


def _growth(function: str, threads: int) -> int:
    command = [sys.executable, "-m", __spec__.name, function]  # type: ignore[name-defined]
    env = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    root = Path(__file__).parents[2]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=root)
    if done.returncode:
        raise RuntimeError(f"{function} failed: {done.stderr[-2000:]}")
    return int(done.stdout.split()[-1])


def _main() -> None:
    module, _, name = sys.argv[1].partition(":")
    call = getattr(importlib.import_module(module), name)()
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts at what is resident now
    before = _peak_resident()
    call()
    print(_peak_resident() - before)


def _peak_resident() -> int:
    with open("/proc/self/status") as file:
        return next(1024 * int(line.split()[1]) for line in file if line.startswith("VmHWM"))


if __name__ == "__main__":
    _main()

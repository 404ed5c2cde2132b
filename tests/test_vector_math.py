"""The first parallel calls of a process are as accurate as later ones, whichever room it imports."""

from __future__ import annotations

import pkgutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

import torchjepa

_HALVES = """
import torch
torch.set_num_threads(2)
import {room}
x = torch.linspace(0.05, 0.95, 8192).view(2, 1, -1)
for function in torch.sqrt, torch.exp, torch.log, torch.erf, torch.tanh:
    first, second = function(x), function(x)
    assert torch.equal(first, second), (function.__name__, float((first - second).abs().max()))
"""


def _run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)


def test_every_room_that_loads_torch_makes_the_first_calls() -> None:
    code = (
        "import importlib, sys; importlib.import_module(sys.argv[1]); "
        "sys.exit('torch' in sys.modules and 'torchjepa._vector_math' not in sys.modules)"
    )
    rooms = [room.name for room in pkgutil.iter_modules(torchjepa.__path__) if room.name != "__main__"]
    assert {"collapse", "energy", "ema", "dist", "nn"} <= set(rooms)
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(
            lambda room: subprocess.run([sys.executable, "-c", code, f"torchjepa.{room}"]).returncode, rooms
        )
    assert dict(zip(rooms, done)) == dict.fromkeys(rooms, 0)


@pytest.mark.slow
def test_first_calls_are_accurate() -> None:
    # Without the module about one process in fifteen fails: two side by side, as the race wants.
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(_run, [_HALVES.format(room="torchjepa.energy")] * 60))
    assert [each.stderr for each in done if each.returncode] == []

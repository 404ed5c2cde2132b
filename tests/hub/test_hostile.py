"""Hostile files are refused in one line, run nothing and take little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.hub.hostile import HOSTILE, RAN, WEIGHTS, Runs, saved
from torchjepa.hub.reading import open_tensors

LIMIT = 256 * 2**20  # above what the process has when torch is imported

GOOD = ("x.pt", "x.safetensors")

# Everything is opened in a process that may take no more than LIMIT, so that what is not refused in time fails.
OPEN_ALL = """
import json, resource, sys
from torchjepa.hub.reading import open_tensors
import torch

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(field))

limit = status("VmSize") + int(sys.argv[1])
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
before, outcomes = status("VmRSS"), {}
for name in sys.argv[2:]:
    try:
        opened = open_tensors(name)
        for tensor in opened.names:
            opened.read(tensor)
        outcomes[name] = ["opened", ""]
    except BaseException as error:
        outcomes[name] = [type(error).__name__, str(error)]
print(json.dumps({"outcomes": outcomes, "grown": status("VmHWM") - before}))
"""


def write(path: Path) -> None:
    if path.suffix == ".pt":
        saved(path, WEIGHTS)
    else:
        save_file(WEIGHTS["encoder"], path, metadata={"epoch": "3"})


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("hostile")
    for name, (make, _) in HOSTILE.items():
        make(folder / name)
    for name in GOOD:
        write(folder / name)
    command = [sys.executable, "-c", OPEN_ALL, str(LIMIT), *HOSTILE, *GOOD]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {**json.loads(done.stdout), "ran": (folder / RAN).exists()}


@pytest.mark.parametrize("name", HOSTILE)
def test_is_refused_in_one_line_that_says_why(opened: dict[str, Any], name: str) -> None:
    kind, message = opened["outcomes"][name]
    assert kind == "ValueError", message
    assert len(message.splitlines()) == 1
    assert message.isprintable()
    assert len(message) < 1000
    assert HOSTILE[name][1] in message


def test_no_code_ran(opened: dict[str, Any]) -> None:
    assert not opened["ran"]


def test_memory_stays_bounded(opened: dict[str, Any]) -> None:
    assert opened["grown"] < LIMIT


def test_the_hostile_pickle_does_run_where_nothing_is_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    saved(tmp_path / "x.pt", Runs())
    torch.load(tmp_path / "x.pt", weights_only=False)
    assert (tmp_path / RAN).exists()


@pytest.mark.parametrize("name", GOOD)
def test_a_good_file_opens_under_the_same_limit(opened: dict[str, Any], name: str) -> None:
    assert opened["outcomes"][name] == ["opened", ""]


def read_all(path: Path) -> dict[str, Any]:
    opened = open_tensors(path)
    return {**{name: opened.read(name).clone() for name in opened.names}, **opened.other}


@pytest.mark.parametrize("name", GOOD)
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    write(path)
    whole = path.read_bytes()
    for length in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError):
            read_all(path)


def outcomes_of_flips(path: Path) -> list[dict[str, Any] | str]:
    """What is read, or the error, of the file with one bit turned over: most bytes, few of the values."""
    whole = path.read_bytes()
    places = [
        place for place in range(len(whole)) if place < 700 or place > len(whole) - 900 or place % 97 == 0
    ]
    outcomes: list[dict[str, Any] | str] = []
    for place in places[:: 2 if len(places) > 800 else 1]:
        turned = bytearray(whole)
        turned[place] ^= 1 << (place % 8)
        path.write_bytes(turned)
        try:
            outcomes.append(read_all(path))
        except ValueError as error:
            outcomes.append(str(error))
    return outcomes


def test_a_flipped_bit_in_a_torch_file_is_refused_or_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path / "x.pt")
    good = read_all(tmp_path / "x.pt")
    outcomes = outcomes_of_flips(tmp_path / "x.pt")
    refused = [outcome for outcome in outcomes if isinstance(outcome, str)]
    assert len(refused) > 300  # the rest is padding, dates and names of records that hold no values
    assert all(len(message.splitlines()) == 1 for message in refused)
    for found in outcomes:
        if not isinstance(found, str):
            assert found.keys() == good.keys()
            assert all(torch.equal(torch.as_tensor(found[key]), torch.as_tensor(good[key])) for key in good)


def test_a_flipped_bit_in_a_safetensors_file_fails_in_one_line_or_not_at_all(tmp_path: Path) -> None:
    # The format keeps no checksum: a turned bit among the values cannot be seen.
    write(tmp_path / "x.safetensors")
    refused = [text for text in outcomes_of_flips(tmp_path / "x.safetensors") if isinstance(text, str)]
    assert len(refused) > 50
    assert all(len(message.splitlines()) == 1 for message in refused)

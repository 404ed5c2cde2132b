from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.tiny import DIGITS, write_array
from torchjepa.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a command gave."""

    code: int
    out: str
    err: str


Jepa = Callable[..., Outcome]


@pytest.fixture(autouse=True)
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "300")
    return tmp_path


@pytest.fixture
def jepa(capsys: pytest.CaptureFixture[str]) -> Jepa:
    def call(*argv: object) -> Outcome:
        capsys.readouterr()
        try:
            code = main([str(argument) for argument in argv])
        except SystemExit as error:
            code = int(error.code or 0)
        caught = capsys.readouterr()
        return Outcome(code, caught.out, caught.err)

    return call


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that was trained and judged; tests read it and change nothing."""
    place = tmp_path_factory.mktemp("finished")
    data = write_array(place / "data.npz")
    assert main(["train", "digits", *DIGITS, "--data", str(data), "--runs", str(place / "runs")]) == 0
    return place / "runs" / "digits"

import subprocess
import sys
import warnings

import pytest
import torch

import torchjepa
from tests.cli.conftest import Jepa
from torchjepa.cli import report
from torchjepa.cli.main import command_names
from torchjepa.data import WorkerKilledError
from torchjepa.engine import DivergedError


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch):
    """Makes `jepa report` raise."""

    def install(error: BaseException) -> None:
        def run(argv: list[str]) -> int:
            raise error

        monkeypatch.setattr(report, "run", run)

    return install


def test_the_commands_are_the_files_that_say_so() -> None:
    assert list(command_names()) == [
        *("convert", "doctor", "embed", "estimate", "eval"),
        *("export", "inspect", "models", "report", "train"),
    ]


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_with_its_summary(jepa: Jepa, argv: list[str]) -> None:
    done = jepa(*argv)
    assert done.code == 0
    for name, summary in command_names().items():
        assert f"  {name:<8}{summary}" in done.out


def test_help_answers_without_importing_torch() -> None:
    code = (
        "import sys; from torchjepa.cli.main import main; main(['--help']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], stdout=subprocess.DEVNULL).returncode == 0


def test_version(jepa: Jepa) -> None:
    assert jepa("--version").out == f"torchjepa {torchjepa.__version__}\n"


def test_an_unknown_command_names_the_nearest(jepa: Jepa) -> None:
    done = jepa("trian")
    assert done.code == 2
    assert done.err == (
        "jepa: There is no command 'trian'. Did you mean train? "
        "The commands are convert, doctor, embed, estimate, eval, export, inspect, models, report, train.\n"
    )


@pytest.mark.parametrize("command", ["doctor", "embed", "eval", "report"])
def test_a_command_without_its_run_is_an_error(jepa: Jepa, command: str) -> None:
    done = jepa(command)
    assert done.code == 2
    assert "Required" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ValueError("a bad\n  value"), 2),
        (PermissionError(13, "Permission denied", "x"), 2),
        (NotADirectoryError(20, "Not a directory", "x"), 2),
        (WorkerKilledError("A data worker was killed"), 2),
        (torch.OutOfMemoryError("CUDA out of memory."), 2),
        (DivergedError(3, "Training stopped at step 3: the loss is NaN or infinite."), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_an_error_is_one_line_and_an_exit_code(jepa: Jepa, failing, error: BaseException, code: int) -> None:
    failing(error)
    done = jepa("report", "x")
    assert done.code == code
    assert done.err.startswith("jepa: ")
    assert done.err.count("\n") == 1


def test_out_of_memory_says_what_to_do(jepa: Jepa, failing) -> None:
    failing(torch.OutOfMemoryError("CUDA out of memory."))
    assert "--batch-size" in jepa("report", "x").err


@pytest.mark.parametrize("error", [RuntimeError("shapes"), KeyError("x"), AssertionError()])
def test_a_defect_of_ours_keeps_its_traceback(jepa: Jepa, failing, error: Exception) -> None:
    failing(error)
    with pytest.raises(type(error)):
        jepa("report", "x")


def test_the_traceback_can_be_asked_for(jepa: Jepa, failing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JEPA_TRACEBACK", "1")
    failing(ValueError("a bad value"))
    with pytest.raises(ValueError, match="a bad value"):
        jepa("report", "x")


def test_a_warning_is_one_line_from_one_process(jepa: Jepa, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(argv: list[str]) -> int:
        warnings.warn("two\n  lines", stacklevel=1)
        return 0

    monkeypatch.setattr(report, "run", run)
    assert jepa("report", "x").err == "jepa: two lines\n"
    monkeypatch.setenv("RANK", "1")
    assert jepa("report", "x").err == ""


def test_an_error_of_another_rank_says_whose_it_is(
    jepa: Jepa, failing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "3")
    failing(ValueError("no"))
    assert jepa("report", "x").err == "jepa (rank 3): no\n"


def test_a_reader_that_stops_early_is_no_error() -> None:
    code = "import sys; from torchjepa.cli.main import main; sys.exit(main(['--help']))"
    command = f'set -o pipefail; {sys.executable} -u -c "{code}" | true'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")

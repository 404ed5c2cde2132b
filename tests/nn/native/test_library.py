"""How the kernels are found, compiled, kept and left out."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.nn.native import oracle
from torchjepa.nn.native import library

pytestmark = pytest.mark.skipif(not oracle.has_floats(), reason=oracle.NO_FLOATS)

# A compiler in no time: it hands out what a real one has made, and notes that it was asked.
COPYING = """#!/bin/sh
case "$*" in *--version*) echo "copies 1.0"; exit 0;; esac
while [ "$1" != -o ]; do shift; done
echo asked >> {notes}
sleep {seconds}
cp {made} "$2"
"""
FAILING = """#!/bin/sh
case "$*" in *--version*) echo "fails 1.0"; exit 0;; esac
echo "no such instruction: tdpbf16ps" >&2
exit 1
"""
REPORT = """
import warnings
warnings.simplefilter("error")
from torchjepa.nn.native.library import describe
print(describe())
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels by the real compiler, made on first use in a cache elsewhere."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCHJEPA_CACHE", str(folder))
        assert find() is not None
    return only(folder / "native")


@pytest.fixture(autouse=True)
def forgotten() -> Iterator[None]:
    yield
    library.library.cache_clear()


def find() -> ctypes.CDLL | None:
    """The kernels as a process that has not asked yet finds them; any warning is an error."""
    library.library.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return library.library()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("TORCHJEPA_CACHE", str(folder))
    return folder / "native"


def only(cache: Path) -> Path:
    """The one library that is kept, drafts included."""
    (path,) = cache.glob("*.so")
    return path


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


@pytest.fixture
def copying(tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Let the compiler copy; tells how often it was asked."""
    notes = tmp_path / "asked"
    text = COPYING.format(notes=notes, made=made, seconds=0)
    monkeypatch.setenv("CXX", str(script(tmp_path / "copies", text)))
    return lambda: notes.read_text().count("asked") if notes.exists() else 0


def in_processes(code: str, number: int = 1) -> list[str]:
    """What so many processes print that run at once with this environment."""
    command = [sys.executable, "-c", code]
    running = [subprocess.Popen(command, stdout=-1, stderr=-1, text=True) for _ in range(number)]
    printed = [each.communicate(timeout=100) for each in running]
    for each, (_, errors) in zip(running, printed, strict=True):
        assert each.returncode == 0, errors
    return [out.strip() for out, _ in printed]


def test_the_kernels_are_compiled_on_first_use_for_their_owner_alone(made: Path) -> None:
    assert made.name.startswith("kernels-")
    assert made.suffix == ".so"
    assert made.parent.stat().st_mode & 0o077 == 0


def test_they_are_kept_and_compiled_once(cache: Path, copying: Callable[[], int]) -> None:
    assert find() is not None
    inode = only(cache).stat().st_ino
    assert find() is not None
    assert copying() == 1
    assert only(cache).stat().st_ino == inode


def test_two_processes_at_once_succeed_and_agree_on_the_name(
    cache: Path, tmp_path: Path, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = COPYING.format(notes=tmp_path / "asked", made=made, seconds=0.5)
    monkeypatch.setenv("CXX", str(script(tmp_path / "copies slowly", text)))
    assert in_processes(REPORT, 2) == ["compiled", "compiled"]
    path = only(cache)
    assert find() is not None
    assert only(cache) == path


def test_another_compiler_gives_another_name(
    cache: Path, tmp_path: Path, made: Path, copying: Callable[[], int], monkeypatch: pytest.MonkeyPatch
) -> None:
    find()
    text = COPYING.format(notes=tmp_path / "asked", made=made, seconds=0)
    script(tmp_path / "copies", text.replace("1.0", "1.1"))
    assert find() is not None
    assert copying() == 2
    assert len(list(cache.glob("*.so"))) == 2


def test_an_empty_cache_keeps_nothing(
    copying: Callable[[], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCHJEPA_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(library.tempfile, "tempdir", None)
    before = set(tmp_path.rglob("*"))
    assert find() is not None
    assert copying() == 1
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "asked"}


@pytest.mark.parametrize("mode", [0o777, 0o770, 0o722])
def test_a_folder_that_others_may_write_to_is_not_used(
    cache: Path, copying: Callable[[], int], made: Path, mode: int
) -> None:
    find()
    path = only(cache)
    path.write_bytes(b"what somebody else has put there")
    cache.chmod(mode)
    assert find() is not None
    assert copying() == 2
    assert path.read_bytes().startswith(b"what")


def test_a_folder_that_cannot_be_made_is_done_without(
    cache: Path, copying: Callable[[], int], tmp_path: Path
) -> None:
    cache.parent.write_text("a file in its place")
    assert find() is not None
    assert copying() == 1


# A process that maps half of a library is killed by the system: another one tries.
@pytest.mark.parametrize("left", [0, 100, 0.5])
def test_a_kept_file_that_is_cut_off_is_made_again(
    cache: Path, copying: Callable[[], int], made: Path, left: float
) -> None:
    find()
    path = only(cache)
    whole = path.read_bytes()
    path.unlink()  # this process has it in memory
    path.write_bytes(whole[: int(left if left > 1 else left * len(whole))])
    assert in_processes(REPORT) == ["compiled"]
    assert copying() == 2
    assert only(cache).stat().st_size == len(whole)


def test_a_failing_compiler_is_named_once(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = script(tmp_path / "fails", FAILING)
    monkeypatch.setenv("CXX", str(compiler))
    library.library.cache_clear()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert [library.library(), library.library()] == [None, None]
    (warning,) = caught
    text = str(warning.message)
    assert f"{compiler} failed: no such instruction: tdpbf16ps" in text
    assert "TORCHJEPA_NATIVE=0" in text
    assert library.describe() == "torch"
    assert not list(cache.glob("*.so"))


@pytest.mark.parametrize("variable", ["CXX", "PATH"])
def test_without_a_compiler_nothing_is_said(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    if variable == "PATH":
        monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "nothing here"))
    assert find() is None
    assert library.describe() == "torch"


@pytest.mark.parametrize("number", ["0", "1", ""])
def test_they_are_left_out_on_request(number: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHJEPA_NATIVE", number)
    assert (find() is None) == (number == "0")


TRAINING = """
import torch
from torchjepa.nn.attention import Block
from torchjepa.nn.native import float_layers, library

torch.manual_seed(0)
block, x = Block(64, 4), torch.randn(2, 9, 64, requires_grad=True)
for low in (False, True):
    with torch.autocast("cpu", torch.bfloat16, enabled=low):
        out = block(x)
    found = torch.autograd.grad(out.square().mean(), [x, *block.parameters()])
    print(float(out.detach().norm()), *(float(each.norm()) for each in found))
runtimes = {line.split()[-1] for line in open("/proc/self/maps") if "omp" in line.rsplit("/", 1)[-1]}
runtimes = {path for path in runtimes if path.rsplit("/", 1)[-1].startswith(("libgomp", "libomp", "libiomp"))}
print(library.describe(), float_layers.serves(torch.float32), library.packed_bytes(torch.bfloat16) > 0, len(runtimes))
"""


def test_training_with_and_without_them_and_one_openmp_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    products = oracle.has_products()
    (own,) = in_processes(TRAINING)
    monkeypatch.setenv("TORCHJEPA_NATIVE", "0")
    (plain,) = in_processes(TRAINING)
    *ours, state = own.splitlines()
    *theirs, state_without = plain.splitlines()
    assert state == f"compiled True {products} 1"
    assert state_without == "torch False False 1"
    for line, other, tolerance in zip(ours, theirs, (1e-5, 2e-2), strict=True):
        expected = [float(number) for number in other.split()]
        assert [float(number) for number in line.split()] == pytest.approx(expected, rel=tolerance)


OPENMP = """
from pathlib import Path
import torch
{first}
def runtimes():
    names = [line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "omp" in line]
    return sorted({{name for name in names if Path(name).name.startswith(("libgomp", "libomp", "libiomp"))}})
before = runtimes()
from torchjepa.nn.native.library import describe
print(describe(), runtimes() == before, len(before))
"""


@pytest.mark.parametrize(("first", "number"), [("", 1), ("import sklearn.cluster", 2)])
def test_the_kernels_bring_no_openmp_of_their_own(made: Path, first: str, number: int) -> None:
    (printed,) = in_processes(OPENMP.format(first=first))
    assert printed == f"compiled True {number}"


def test_another_openmp_in_the_process_leaves_them_out(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = "7f00-7f01 r-xp 00000000 00:00 1   /somewhere/lib/libiomp5.so\n"
    real = Path.read_text

    def read(path: Path, *args: str) -> str:
        return real(path, *args) + maps if str(path) == "/proc/self/maps" else real(path, *args)

    monkeypatch.setattr(Path, "read_text", read)
    assert find() is None


def test_the_environment_is_left_alone() -> None:
    before = dict(os.environ)
    find()
    assert dict(os.environ) == before

"""The kernels on processors other than this one: they compile, and those for tile registers compute the same."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nn.native import oracle
from torchjepa.nn.native import library

HERE = Path(__file__).parent
# By the first that a processor has: tile registers, dot products of pairs, wide vectors, none of them.
PROCESSORS = ["sapphirerapids", "cooperlake", "skylake-avx512", "x86-64-v3"]
FILES = ["split", "attention", "bf16_layers", "float_layers"]  # which meet every kernel


def compiler() -> list[str]:
    found = library._compiler()
    if found is None or sys.platform != "linux":
        pytest.skip("no compiler here")
    return found


def test_a_compiler_that_is_there_compiles_them() -> None:
    # All other tests of kernels are left out where they cannot be had.
    compiler()
    if os.environ.get("TORCHJEPA_NATIVE") != "0":
        assert library._find()[0] is None


@pytest.mark.skipif(not library._flags()[-1].endswith("512"), reason="processors of another kind")
@pytest.mark.parametrize("processor", PROCESSORS)
def test_they_compile_for_every_kind_of_processor(processor: str, tmp_path: Path) -> None:
    command = [*compiler(), f"-march={processor}", "-O0", "-fopenmp", "-shared", "-fPIC", "-std=c++17"]
    (tmp_path / "empty.cpp").write_text("")
    if subprocess.run(
        [*command, "-c", tmp_path / "empty.cpp", "-o", os.devnull], capture_output=True
    ).returncode:
        pytest.skip(f"the compiler does not know {processor}")
    made = tmp_path / "kernels.so"
    done = subprocess.run([*command, *library._SOURCES, "-o", made], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    # All that are asked for by name are there, on whatever processor.
    names = subprocess.run(["nm", "-D", made], capture_output=True, text=True, check=True).stdout
    assert {*library._KERNELS, "float_bytes", "bfloat16_bytes"} <= set(re.findall(r" T (\w+)", names))


@pytest.fixture(scope="module")
def other_kernels(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Where this processor has no tile registers, those of a software; where it has, without them."""
    options = "-DNO_TILES" if oracle.splits() else f"-include {HERE / 'emulated_tiles.h'}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CXX", f"{' '.join(compiler())} {options}")
        # One for all workers of a test run: the first compiles.
        folder = tmp_path_factory.getbasetemp()
        folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder
        patch.setenv("TORCHJEPA_CACHE", str(folder / "other_kernels"))
        yield


@pytest.mark.slow
@pytest.mark.skipif(not oracle.has_products(), reason=oracle.NO_PRODUCTS)
@pytest.mark.parametrize("file", FILES)
def test_with_tile_registers_in_software_or_without_them(other_kernels: None, file: str) -> None:
    report = "from tests.nn.native.oracle import splits; print(splits())"
    found = subprocess.run([sys.executable, "-c", report], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == str(not oracle.splits())
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", HERE / f"test_{file}.py"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-5000:]
    assert "[100%]" in done.stdout

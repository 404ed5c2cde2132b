"""The compiled kernels of this machine: found, compiled on first use, kept, loaded.

The C++ beside this file takes some seconds to compile, for exactly the processor at hand, which no wheel could do. It
is kept in `$TORCHJEPA_CACHE/native`, by default `~/.cache/torchjepa/native`, named by all that it depends on.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch  # its OpenMP must be in the process before ours is looked for

_HERE = Path(__file__).parent
_SOURCES, _HEADERS = sorted(_HERE.glob("*.cpp")), sorted(_HERE.glob("*.h"))
# Vectors as wide as the processor has, multiplications fused with additions; NaN and infinity keep their meaning.
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fopenmp", "-shared", "-fPIC"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_WIDE = "-mprefer-vector-width=512"  # known on x86 alone
_COMPILE_SECONDS = 120
_KERNELS = (
    *(
        "float_norm_linear",
        "float_norm_linear_backward",
        "float_linear_add",
        "float_linear_add_backward",
        "float_mlp",
        "float_mlp_backward",
    ),
    *("float_attend", "float_attend_backward", "bf16_attend", "bf16_attend_backward"),
    *("bf16_norm_linear", "bf16_norm_linear_backward"),
    *("float_weight_gradient", "bf16_weight_gradient"),
    *("bf16_linear_add", "bf16_linear_add_backward", "bf16_mlp", "bf16_mlp_backward"),
)


@functools.cache
def library() -> ctypes.CDLL | None:
    """The compiled kernels, or nothing where they cannot be had; then torch's own operations do the work.

    They need Linux, a torch that runs on the OpenMP of GNU (as its wheels do: two thread pools would stall each other)
    and a C++ compiler, `$CXX` or `g++`. `TORCHJEPA_NATIVE=0` in the environment leaves them out.
    """
    reason, found = _find()
    if reason is not None:
        warnings.warn(
            f"torchjepa: the kernels for this processor are left out, torch's own operations, which are slower, take "
            f"their place: {reason}. TORCHJEPA_NATIVE=0 in the environment leaves them out without a word.",
            stacklevel=2,
        )
    return found


def _find() -> tuple[str | None, ctypes.CDLL | None]:
    # Why they are missing, where that is a fault, and the kernels.
    if os.environ.get("TORCHJEPA_NATIVE") == "0" or not sys.platform.startswith("linux"):
        return None, None
    compiler = _compiler()
    if compiler is None or not _runs_on_gnu(_openmp_files()):
        return None, None
    try:
        return None, _load(compiler)
    except subprocess.CalledProcessError as error:
        lines = (error.stderr or "").strip().splitlines() or [f"exit code {error.returncode}"]
        return f"{shlex.join(compiler)} failed: {lines[0]}", None
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error), None


def _compiler() -> list[str] | None:
    named = os.environ.get("CXX", "").strip() or "g++"
    # A file, whatever its name, or a command with arguments, as in "ccache g++".
    words = [named] if shutil.which(named) else shlex.split(named)
    return words if words and shutil.which(words[0]) else None


def _openmp_files() -> set[str]:
    # The OpenMP runtimes in this process; other packages than torch may have brought theirs.
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return set()
    files = {line.split(maxsplit=5)[-1] for line in maps.splitlines() if "omp" in line}
    return {name for name in files if any(f"/lib{kind}" in name for kind in ("gomp", "iomp", "omp"))}


def _runs_on_gnu(runtimes: set[str]) -> bool:
    # Ours asks for a file of this name, and is given the one that torch has loaded.
    known = [Path(name).name for name in runtimes]
    return "libgomp.so.1" in known and all(name.startswith("libgomp") for name in known)


def _load(compiler: list[str]) -> ctypes.CDLL:
    name = f"kernels-{_key(compiler)}.so"
    folder = _folder()
    if folder is None:
        with tempfile.TemporaryDirectory() as place:
            return _open(_compile(compiler, Path(place, name)))
    path = folder / name
    return _open(path if _is_whole(path) else _compile(compiler, path))


def _is_whole(path: Path) -> bool:
    # A file cut off, by a full disk say, would kill the process that loads it.
    try:
        return path.with_suffix(".sha256").read_text() == hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError:
        return False


def _key(compiler: list[str]) -> str:
    version = subprocess.run([*compiler, "--version"], capture_output=True, text=True, check=True).stdout
    sources = (path.read_text() for path in (*_SOURCES, *_HEADERS))
    parts = [*sources, *compiler, version, *_flags(), platform.machine(), _processor()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _processor() -> str:
    # What the compiler takes as native: machines that share a home directory may differ.
    wanted = ("model name", "flags", "Features", "CPU implementer", "CPU part")
    lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
    return "\n".join(line for line in lines if line.startswith(wanted))


def _flags() -> tuple[str, ...]:
    return (*_FLAGS, _WIDE) if platform.machine() in ("x86_64", "AMD64") else _FLAGS


def _folder() -> Path | None:
    base = os.environ.get("TORCHJEPA_CACHE")
    if base == "":
        return None
    if base is None:
        base = os.path.join(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "torchjepa")
    folder = Path(base, "native")
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    except OSError:
        return None
    # Code is run from here: nobody else may write to it.
    state = folder.stat()
    is_ours = state.st_uid == os.getuid() and not state.st_mode & 0o022 and os.access(folder, os.W_OK)
    return folder if is_ours else None


def _compile(compiler: list[str], path: Path) -> Path:
    # Under another name first: ranks that start together all compile, and none loads half of a file.
    handle, draft = tempfile.mkstemp(dir=path.parent, suffix=".so")
    os.close(handle)
    try:
        command = [*compiler, *_flags(), *map(str, _SOURCES), "-o", draft]
        subprocess.run(command, capture_output=True, text=True, check=True, timeout=_COMPILE_SECONDS)
        path.with_suffix(".sha256").write_text(hashlib.sha256(Path(draft).read_bytes()).hexdigest())
        os.replace(draft, path)
    except BaseException:
        Path(draft).unlink(missing_ok=True)
        raise
    return path


def _open(path: Path) -> ctypes.CDLL:
    before = _openmp_files()
    found = ctypes.CDLL(str(path))
    if _openmp_files() != before:
        raise OSError(f"{path} brought an OpenMP runtime beside torch's")
    found.float_bytes.restype = found.bfloat16_bytes.restype = ctypes.c_long
    for name in _KERNELS:
        function = getattr(found, name)
        function.argtypes, function.restype = (
            [ctypes.c_void_p] * (2 if name.endswith("attend_backward") else 1),
            None,
        )
    return found


@functools.cache
def packed_bytes(dtype: torch.dtype) -> int:
    """Bytes that a number takes in a weight packed for products of our own; 0 where this processor has none.

    Args:
        dtype: of the products, float32 or bfloat16.
    """
    found = library()
    if found is None:
        return 0
    return found.bfloat16_bytes() if dtype == torch.bfloat16 else found.float_bytes()


def describe() -> str:
    """Which kernels the layers of transformers have on this machine's processors: `compiled` or `torch`."""
    return "torch" if library() is None else "compiled"

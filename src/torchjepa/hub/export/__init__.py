"""Files that the rest of the ecosystem reads: one file per format, found by being here.

Each holds `FORMAT`, which says what the format can do, writes it, and reads it back with its own consumer.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from torchjepa.hub.encoder import LoadedEncoder
from torchjepa.hub.parts import Part, make_part
from torchjepa.hub.staging import staged

if TYPE_CHECKING:
    from torchjepa.hub.load import Pretrained

PRECISIONS = ("full", "half", "int8")
# Largest difference over the largest value. Full: other kernels in another order; half: 11 bits of mantissa
# through tens of layers; int8: what rounding activations to 8 bits costs.
TOLERANCES = {"full": 1e-4, "half": 2e-2, "int8": 2e-1}
Consumer = Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Job:
    """What is to be written.

    Args:
        source: the loaded model.
        part: the network, in float32, with its examples.
        precision: `full`, `half` or `int8`.
        dynamic: whether the free axes of the part stay open.
        run: the run folder that the source comes from, if any.
        num_steps: steps of a rollout.
    """

    source: LoadedEncoder | Pretrained
    part: Part
    precision: str = "full"
    dynamic: bool = False
    run: Path | None = None
    num_steps: int = 1


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        write: writes a job to a path that does not exist.
        read: opens the path with the format's own consumer: inputs by name to outputs by name.
        consumer: who reads it, with its version.
        suffix: of the file; empty for a folder.
        parts: what it can hold.
        precisions: in which it can hold it.
        dynamic: whether an axis has to be fixed in it at all, so that `dynamic` means something.
        refusals: why not, by part or precision, with the way out.
    """

    write: Callable[[Job, Path], None]
    read: Callable[[Job, Path], Consumer]
    consumer: Callable[[], str]
    suffix: str
    parts: tuple[str, ...]
    precisions: tuple[str, ...]
    dynamic: bool
    refusals: Mapping[str, str]


@dataclass(frozen=True)
class Exported:
    """What was written, and how far its consumer is from the source.

    Args:
        path: the file or folder.
        num_bytes: all of it.
        consumer: who read it back.
        deviations: by output, the largest difference to the source's over the source's largest value.
        tolerance: what would have been an error.
        signature: inputs and outputs with their shapes.
    """

    path: Path
    num_bytes: int
    consumer: str
    deviations: Mapping[str, float]
    tolerance: float
    signature: str


@cache
def formats() -> dict[str, Format]:
    """Every format by its name, as the command line has it."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    return {
        name.replace("_", "-"): importlib.import_module(f"{__name__}.{name}").FORMAT for name in sorted(names)
    }


def export(
    source: LoadedEncoder | Pretrained,
    path: str | Path,
    *,
    format: str,
    part: str = "encoder",
    precision: str = "full",
    dynamic: bool = False,
    num_steps: int = 1,
    run: str | Path | None = None,
) -> Exported:
    """Write a part of a model in a format, read it back with the format's own consumer, and compare.

    The file appears once its outputs agree with the source's, and not before; what is there is replaced.

    Args:
        source: what `torchjepa.load` or `load_encoder` gave.
        path: the file or, for some formats, the folder.
        format: one of `formats()`.
        part: `encoder`, `predictor` or `rollout`; see `make_part` for what goes in and comes out.
        precision: `full` (float32), `half` (float16 inside, float32 at inputs and outputs) or `int8` (weights and,
            while running, activations).
        dynamic: leave the batch open, and the predictor's numbers of tokens; otherwise the batch is one.
        num_steps: steps of a rollout.
        run: the run folder that the source comes from, for the model card.

    Raises:
        ValueError: the format cannot hold this, the source has no such part, or the outputs deviate by more than the
            precision allows.
        ModuleNotFoundError: the format's library is not installed.
    """
    chosen = _checked(format, part, precision, dynamic)
    consumer = chosen.consumer()
    made = make_part(source, part, dynamic=dynamic, num_steps=num_steps)
    job = Job(source, made, precision, dynamic, None if run is None else Path(run), num_steps)
    with staged(path) as written:
        chosen.write(job, written)
        deviations = _compare(job, chosen.read(job, written))
        _check_deviations(deviations, TOLERANCES[precision], consumer)
        files = [file for file in written.parent.rglob("*") if file.is_file()]
        num_bytes = sum(file.stat().st_size for file in files)
    return Exported(Path(path), num_bytes, consumer, deviations, TOLERANCES[precision], _signature(job))


def _checked(format: str, part: str, precision: str, dynamic: bool) -> Format:
    known = formats()
    if format not in known:
        raise ValueError(f"export: there is no format {format!r}; the formats are {', '.join(known)}.")
    chosen = known[format]
    for value, allowed in ((part, chosen.parts), (precision, chosen.precisions)):
        if value not in allowed:
            why = chosen.refusals.get(value, f"choose among {', '.join(allowed)}")
            raise ValueError(f"export: {format} does not hold {value!r}: {why}.")
    if dynamic and not chosen.dynamic:
        raise ValueError(
            f"export: {format} fixes no batch size, so there is nothing to make dynamic; leave it out."
        )
    return chosen


def _compare(job: Job, consumer: Consumer) -> dict[str, float]:
    """The largest deviation of each output, over the examples and, with open axes, their shortest cut."""
    deviations: dict[str, float] = {}
    for inputs in (job.part.inputs, job.part.shortest()) if job.dynamic else (job.part.inputs,):
        wanted = job.part(inputs)
        for name, found in consumer(inputs).items():
            deviation = _deviation(wanted[name], found)
            # A NaN is kept, whichever comes first.
            deviations[name] = (
                deviation if deviation != deviation else max(deviations.get(name, 0.0), deviation)
            )
    return deviations


def _deviation(wanted: Tensor, found: Tensor) -> float:
    if wanted.shape != found.shape:
        raise ValueError(
            f"export: the file gives {tuple(found.shape)} where the source gives {tuple(wanted.shape)}; nothing was "
            "kept."
        )
    largest = wanted.abs().max().clamp_min(torch.finfo(wanted.dtype).tiny)
    return float((found.to(wanted.dtype) - wanted).abs().max() / largest)


def _check_deviations(deviations: Mapping[str, float], tolerance: float, consumer: str) -> None:
    for name, deviation in deviations.items():
        if not deviation <= tolerance:  # NaN too
            raise ValueError(
                f"export: {consumer} gives {name} that differ by {deviation:.1e} of their largest value, and "
                f"{tolerance:.0e} is allowed; nothing was kept. Use a finer precision."
            )


def _signature(job: Job) -> str:
    values = job.part(job.part.inputs)
    taken, given = (
        ", ".join(
            _shape(name, value, job.part.free[name] if job.dynamic else {}) for name, value in side.items()
        )
        for side in (job.part.inputs, values)
    )
    return f"{taken} -> {given}"


def _shape(name: str, value: Tensor, free: Mapping[int, str]) -> str:
    return f"{name} [{', '.join(free.get(axis, str(length)) for axis, length in enumerate(value.shape))}]"

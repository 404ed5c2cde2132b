"""What a training run will take: memory and FLOPs, followed without computing, and a few real updates timed."""

from __future__ import annotations

import dataclasses
import importlib
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from torchjepa.engine.devices import launch
from torchjepa.engine.ledger import Ledger
from torchjepa.engine.sampler import check_divisible
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.sharding import find_units
from torchjepa.engine.step import Stepper
from torchjepa.nn.native.library import packed_bytes
from torchjepa.nn.native.structures import kernels_while_followed
from torchjepa.types import Batch

# Mask sizes differ from step to step: the memory is the most of so many updates, the FLOPs are their mean.
_FOLLOWED = 4
_TIMED = 5
# What a process on the CPU takes beside its tensors: what kernels and libraries take, and, as a share of the
# activations, holes that glibc leaves between blocks. Fitted to 18 float32 runs and 3 in bfloat16, held out were 6
# others (docs/growth.md). Where activations are recomputed the holes are larger.
_BESIDES = {"32": (20_000_000, 0.10), "bf16-mixed": (60_000_000, 0.55)}
# Where the kernels for tile registers do the work, which need no copies of their own: fitted to 4 runs, none held out.
_BESIDES_KERNELS = (40_000_000, 0.27)
_KINDS = ("weights", "gradients", "optimizer", "target")


@dataclass(frozen=True)
class Footprint:
    """What one update takes on each device.

    Args:
        parameters: numbers of parameters of each part of the learner.
        flops: floating-point operations for one sample: the forward pass of each part, "loss" for what is
            outside of the parts, and "backward", recomputed activations included.
        whole: bytes by kind where a kind is there at once: weights, gradients, optimizer, target (all that is not
            trained, buffers too), and of several devices "messages" (DDP's copy of the gradients) or "gathered"
            (what FSDP has put together for the moment).
        peak: bytes by kind at the moment of the update when they are most, "activations" among them. Gradients come
            while activations go, so the two are seldom whole together.
        sent: bytes that each device sends in one update, gradients and weights in a ring.
        overhead: bytes beside the tensors, on a CPU: libraries, and holes between blocks; an allowance, 0 elsewhere.
    """

    parameters: dict[str, int]
    flops: dict[str, float]
    whole: dict[str, int]
    peak: dict[str, int]
    sent: int = 0
    overhead: int = 0

    @property
    def bytes(self) -> int:
        """Bytes of tensors at the peak."""
        return sum(self.peak.values())

    @property
    def process(self) -> int:
        """Bytes by which the memory in use grows: tensors and overhead."""
        return self.bytes + self.overhead

    @property
    def flops_per_sample(self) -> float:
        """Floating-point operations of one sample's share of an update."""
        return sum(self.flops.values())


@dataclass(frozen=True)
class Speed:
    """A few real updates on synthetic input.

    Args:
        device: where they were done, in words.
        samples: samples of an update on this device.
        seconds: of each update, the first left out.
        bytes: by which the memory in use grew at most: of a GPU `max_memory_allocated`, else of the process.
        before: bytes that the process took before the learner was built.
    """

    device: str
    samples: int
    seconds: tuple[float, ...]
    bytes: int
    before: int

    @property
    def samples_per_second(self) -> float:
        """Samples of the median update in a second."""
        return self.samples / statistics.median(self.seconds)


def follow_update(
    build: Callable[[], nn.Module],
    shapes: Sequence[Sequence[int]],
    settings: TrainSettings,
    num_devices: int = 1,
) -> Footprint:
    """Follow an update of a learner operation by operation, with tensors that have shapes but no values.

    It is the engine's own update at the batch asked for, so accumulation, recomputed activations, precision and
    clipping count as they are. Nothing is computed and no memory taken. Kernels are those of the device at hand,
    their scratch space is left out; `compile` is not followed.

    Args:
        build: makes the learner; called under torch's fake tensors.
        shapes: of one sample of each view, `(c, h, w)`.
        settings: how it is to be trained; strategy and `num_devices` say what each device holds.
        num_devices: over all nodes.

    Raises:
        ValueError: the batch does not split evenly, or the learner cannot be followed.
    """
    from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException

    check_divisible(settings.global_batch_size, settings.accumulate, num_devices)
    rows = settings.global_batch_size // (settings.accumulate * num_devices)
    fabric = launch(_alone(settings))
    fakes = _fake_tensors()
    with fakes, fabric.device, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Accessing the data pointer")  # copy.deepcopy does
        learner = build()
        views = [torch.empty(rows, *shape) for shape in shapes]
    # A fake stands on its device from the start and cannot be moved.
    learner._apply = lambda *_, **__: learner  # type: ignore[method-assign, assignment]
    try:
        footprint = _follow(Stepper(fabric, learner, settings), learner, views, settings)
    except (DataDependentOutputException, DynamicOutputShapeException) as error:
        raise ValueError(
            f"{type(learner).__name__} cannot be estimated: the shapes of its tensors depend on their values "
            f"({error}); masks are to come from the generator alone."
        ) from error
    finally:
        # Weak references to the storages of constants, such as batch norm's counters: the garbage collector must not
        # meet them together with the storages.
        fakes.fake_tensor_converter.constant_storage_mapping.clear()
    if fabric.device.type == "cpu":
        by_kernels = settings.precision == "bf16-mixed" and packed_bytes(torch.bfloat16) > 0
        fixed, share = _BESIDES_KERNELS if by_kernels else _BESIDES[settings.precision]
        overhead = fixed + round(share * footprint.peak["activations"])
        footprint = dataclasses.replace(footprint, overhead=overhead)
    return footprint if num_devices == 1 else _spread(footprint, learner, settings, num_devices)


def time_updates(
    build: Callable[[], nn.Module],
    shapes: Sequence[Sequence[int]],
    settings: TrainSettings,
    num_devices: int = 1,
    seconds: float = 20.0,
) -> Speed:
    """Do a few updates on random input, on the one device at hand, with the share of the batch that it would get.

    Args:
        build: makes the learner.
        shapes: of one sample of each view, `(c, h, w)`.
        settings: how it is to be trained.
        num_devices: over which the batch is spread.
        seconds: no update is begun after these, the first two excepted.
    """
    importlib.import_module("torch._dynamo")  # the first optimizer imports it: 50 MB that are no tensor's
    before = _resident()
    fabric = launch(_alone(settings))
    rows = settings.global_batch_size // (settings.accumulate * num_devices)
    stepper = Stepper(fabric, build(), settings)
    views = [torch.randn(rows, *shape, device=fabric.device) for shape in shapes]
    stream = _batches(views, settings)
    times: list[float] = []
    start = time.perf_counter()
    for step in range(_TIMED + 1):
        begin = time.perf_counter()
        stepper.update(stream, step)
        _synchronize(fabric.device)
        times.append(time.perf_counter() - begin)
        if step and time.perf_counter() - start > seconds:
            break
    return Speed(
        _describe(fabric.device),
        rows * settings.accumulate,
        tuple(times[1:]),
        _peak(fabric.device, before),
        before,
    )


def _fake_tensors() -> Any:
    from torch._subclasses.fake_tensor import FakeTensorMode

    class OneMode(FakeTensorMode):
        # Fake tensors carry their mode. A deep copy of a network (the target encoder) would copy it too, and with it
        # weak references to storages: torch 2.13 then frees some of them twice.
        def __deepcopy__(self, memo: object) -> OneMode:
            return self

    return OneMode(allow_non_fake_inputs=True)


def _alone(settings: TrainSettings) -> TrainSettings:
    return dataclasses.replace(settings, devices=1, num_nodes=1, strategy="auto", compile=False)


def _batches(views: Sequence[Tensor], settings: TrainSettings) -> Iterator[Batch]:
    """Micro-batches without end, each with memory of its own as a loader's are."""
    rows = len(views[0])
    ids, labels = torch.arange(rows), torch.full((rows,), -1)
    while True:
        for micro in range(settings.accumulate):
            fresh = tuple(view.clone() for view in views)
            yield Batch(fresh, ids, labels, micro * rows, settings.global_batch_size)


def _follow(
    stepper: Stepper, learner: nn.Module, views: Sequence[Tensor], settings: TrainSettings
) -> Footprint:
    trained = [parameter for parameter in learner.parameters() if parameter.requires_grad]
    still = [each for each in learner.parameters() if not each.requires_grad]
    stream, ledger = _batches(views, settings), Ledger(learner)
    peaks, flops = [], []
    with ledger.watching():
        stepper.update(stream, 0)  # makes the optimizer's state
        ledger.assign("optimizer", stepper.state_tensors())
        ledger.assign("weights", trained)
        ledger.assign("target", [*still, *learner.buffers()])
        for step in range(1, 1 + _FOLLOWED):
            ledger.start()
            with kernels_while_followed():  # which keep less than torch's operations, and hide them
                stepper.update(stream, step)
            peaks.append(ledger.peak)
            ledger.start()
            stepper.update(stream, step)
            flops.append(ledger.flops)
    samples = _FOLLOWED * len(views[0]) * settings.accumulate
    return Footprint(
        parameters=_parameters(learner),
        flops={name: sum(each[name] for each in flops) / samples for name in dict.fromkeys(chain(*flops))},
        whole={**{kind: ledger.live[kind] for kind in _KINDS}, "gradients": _num_bytes(trained)},
        peak=max(peaks, key=lambda peak: sum(peak.values())),
    )


def _parameters(learner: nn.Module) -> dict[str, int]:
    parts = {
        name: sum(each.numel() for each in child.parameters()) for name, child in learner.named_children()
    }
    return {name: number for name, number in parts.items() if number}


def _num_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors)


def _spread(alone: Footprint, learner: nn.Module, settings: TrainSettings, num_devices: int) -> Footprint:
    """From one device with its share of the batch to one of several."""
    spread = _sharded if settings.strategy == "fsdp" else _copied
    return spread(alone, learner, settings, num_devices)


def _copied(alone: Footprint, learner: nn.Module, settings: TrainSettings, num_devices: int) -> Footprint:
    # DDP reduces gradients in buckets of its own, once for an update; a ring sends each byte twice.
    gradients = alone.whole["gradients"]
    messages = {"messages": gradients}
    sent = round(2 * gradients * (num_devices - 1) / num_devices)
    return dataclasses.replace(alone, whole=alone.whole | messages, peak=alone.peak | messages, sent=sent)


def _sharded(alone: Footprint, learner: nn.Module, settings: TrainSettings, num_devices: int) -> Footprint:
    # FSDP gathers the weights of a unit for the forward and again for the backward pass, and reduces and scatters
    # its gradients; what belongs to no unit stays gathered in between.
    units = [_num_bytes(unit.parameters()) for unit in find_units(learner)]
    root = _num_bytes(learner.parameters()) - sum(units)
    trained = [
        _num_bytes(each for each in unit.parameters() if each.requires_grad) for unit in find_units(learner)
    ]
    # One unit at work, the next one ahead of it, and the gradients of one before they are scattered.
    gathered = root + 3 * max(units, default=0)
    passed = _num_bytes(learner.parameters()) + sum(trained) + alone.whole["gradients"]
    return dataclasses.replace(
        alone,
        whole={kind: size // num_devices for kind, size in alone.whole.items()} | {"gathered": gathered},
        peak={kind: size // num_devices if kind in _KINDS else size for kind, size in alone.peak.items()}
        | {"gathered": gathered},
        sent=round(settings.accumulate * passed * (num_devices - 1) / num_devices),
    )


def _synchronize(device: torch.device) -> None:
    if device.type in ("cuda", "mps"):
        getattr(torch, device.type).synchronize()


def _describe(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {torch.get_num_threads()} threads" if device.type == "cpu" else device.type


def _peak(device: torch.device, before: int) -> int:
    return torch.cuda.max_memory_allocated(device) if device.type == "cuda" else _resident("VmHWM") - before


def _resident(figure: str = "VmRSS") -> int:
    """Bytes of memory that this process has now, or had at most."""
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith(figure))
    except OSError:  # no Linux; the most so far will do, in kilobytes but on macOS
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)

"""What `jepa estimate` prints."""

from __future__ import annotations

import statistics
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torchjepa.cli.estimate import Plan
    from torchjepa.engine import Footprint, Speed

_WORDS = {
    "target": "target, buffers",
    "messages": "DDP's messages",
    "gathered": "gathered by FSDP",
}


def as_text(plan: Plan, footprint: Footprint, speed: Speed | None) -> str:
    """All figures as text.

    Args:
        plan: the run.
        footprint: what was followed.
        speed: what was measured, if anything.
    """
    recipe = plan.recipe
    split = f" in {recipe.accumulate} micro-batches" if recipe.accumulate > 1 else ""
    devices = f"{plan.num_devices} device{'s' * (plan.num_devices > 1)}"
    size = " x ".join(map(str, recipe.preprocessing(plan.num_channels).input_shape))
    title = (
        f"{plan.name}, {size}, batch {recipe.batch_size}{split} on {devices}, "
        f"precision {recipe.precision}, {plan.total_steps} steps"
    )
    parts = [title, plan.data, "", *_work(footprint), "", *_memory(footprint, speed)]
    if plan.num_devices > 1:
        parts += ["", f"sent by each device in a step: {_bytes(footprint.sent)}, in a ring"]
    if speed is not None:
        parts += ["", *_speed(plan, footprint, speed)]
    return "\n".join(parts)


def _work(footprint: Footprint) -> list[str]:
    names = dict.fromkeys([*footprint.parameters, *footprint.flops])
    rows = [("", "parameters", "FLOPs a sample")]
    for name in names:
        number, flops = footprint.parameters.get(name, 0), footprint.flops.get(name, 0)
        rows.append((name, _count(number), _count(flops)))
    total = sum(footprint.parameters.values())
    rows.append(("all", _count(total), _count(footprint.flops_per_sample)))
    return _table(rows)


def _memory(footprint: Footprint, speed: Speed | None) -> list[str]:
    rows = [("memory of each device", "at once", "at the peak")]
    for kind in dict.fromkeys([*footprint.whole, *footprint.peak]):
        whole = footprint.whole.get(kind)
        rows.append(
            (
                _WORDS.get(kind, kind),
                "" if whole is None else _bytes(whole),
                _bytes(footprint.peak.get(kind, 0)),
            )
        )
    if footprint.overhead:
        rows.append(("libraries, holes between blocks", "", _bytes(footprint.overhead)))
    rows.append(("all", "", _bytes(footprint.process)))
    if speed is None:
        return _table(rows)
    rows.append(("measured in the updates below", "", _bytes(speed.bytes)))
    rows.append(("besides, Python and its libraries", "", _bytes(speed.before)))
    return _table(rows)


def _speed(plan: Plan, footprint: Footprint, speed: Speed) -> list[str]:
    step, rate = statistics.median(speed.seconds), speed.samples_per_second
    lines = [
        f"speed on this device ({speed.device}), random input, loading not counted: {rate:.4g} samples/s",
        f"  {_time(step)} an update of {speed.samples} samples (median of {len(speed.seconds)}, "
        f"{_time(min(speed.seconds))} to {_time(max(speed.seconds))}), "
        f"{_count(footprint.flops_per_sample * rate)}FLOP/s",
        f"  {plan.total_steps} steps: {_time(plan.total_steps * step)}",
    ]
    if plan.num_devices > 1:
        lines.append(
            f"  {plan.num_devices} devices, if talking to each other cost nothing (not measured): "
            f"{plan.num_devices * rate:.4g} samples/s"
        )
    return lines


def _table(rows: Iterable[tuple[str, str, str]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return [f"{a:<{widths[0]}}  {b:>{widths[1]}}  {c:>{widths[2]}}".rstrip() for a, b, c in rows]


def _count(number: float) -> str:
    if number == 0:
        return ""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return f"{number:.0f} "


def _bytes(number: int) -> str:
    return f"{number / 1e9:.2f} GB" if number >= 1e9 else f"{number / 1e6:.1f} MB"


def _time(seconds: float) -> str:
    for unit, size in (("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{1e3 * seconds:.3g} ms"

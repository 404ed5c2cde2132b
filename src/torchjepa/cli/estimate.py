"""jepa estimate: what a training run would take: parameters, FLOPs, memory and time."""

from __future__ import annotations

import argparse
import dataclasses
import json
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import TYPE_CHECKING, Any

from torchjepa.cli.train import parse

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from torchjepa.data.source import ChooseTimes
    from torchjepa.engine import Footprint, Speed
    from torchjepa.recipes.base import Recipe

HELP = """Say what `jepa train` with the same words would take, without training.

usage: jepa estimate [RECIPE] [--json] [--no-speed] [--field value ...]

--json      print one JSON object
--no-speed  do not time updates; then no memory is taken, whatever the size

Memory is that of one device at the moment of an update when it is most, followed operation by operation with tensors
that have no values. Speed is measured: a few real updates on random input, in a process of its own, on one device of
this machine with the share of the batch that each of --devices would get; loading data is not in it.

All other options are those of `jepa train`:
"""


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run that was asked about.

    Args:
        recipe: all its fields.
        name: of the recipe.
        data: the data in words.
        num_channels: of the images.
        total_steps: updates of the whole run.
        num_devices: over all machines.
    """

    recipe: Recipe
    name: str
    data: str
    num_channels: int
    total_steps: int
    num_devices: int


def run(argv: Sequence[str]) -> int:
    """Run `jepa estimate` with these arguments."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--no-speed", action="store_true")
    ours, rest = parser.parse_known_args(list(argv))
    if {"-h", "--help"} & set(rest):
        print(HELP)
    plan = make_plan(rest)
    footprint = _followed(plan)
    speed = None if ours.no_speed else _timed(rest)
    if ours.json:
        print(json.dumps(_as_json(plan, footprint, speed), indent=2))
    else:
        from torchjepa.cli.estimate_text import as_text

        print(as_text(plan, footprint, speed))
    return 0


def make_plan(argv: Sequence[str]) -> Plan:
    """The run that these arguments of `jepa train` stand for.

    Raises:
        ValueError: as `jepa train` would.
    """
    request = parse(argv)
    from torchjepa.cli.devices import pick_device
    from torchjepa.engine.sampler import check_divisible

    recipe = request.recipe
    pick_device(recipe.accelerator)
    num_devices = recipe.num_nodes * (1 if recipe.devices == "auto" else recipe.devices)
    check_divisible(recipe.batch_size, recipe.accumulate, num_devices)
    split = recipe.open_data()
    total_steps = recipe.total_steps(len(split.train))
    return Plan(
        recipe, request.recipe_name, split.description, split.train.num_channels, total_steps, num_devices
    )


def view_shapes(recipe: Recipe, num_channels: int) -> list[tuple[int, ...]]:
    """The shapes of a sample's views, `(c, h, w)` or `(c, t, h, w)`: those that one blank sample gets."""
    import torch

    from torchjepa.data import BatchStream, ErrorLog
    from torchjepa.types import BatchKeys

    blank = _Blank(max(recipe.image_size, 32), num_channels)
    transform = recipe.build_transform(recipe.preprocessing(num_channels))
    stream = BatchStream(blank, transform, seed=recipe.seed, errors=ErrorLog(None, 1, 0.0))
    keys = BatchKeys(step=0, epochs=(0,), indices=(0,), row_start=0, global_size=1)
    batch = next(stream.batches([keys], torch.device("cpu")))
    return [tuple(view.shape[1:]) for view in batch.views]


class _Blank:
    """One black sample, an image and a minute of video alike."""

    classes: tuple[str, ...] = ()

    def __init__(self, side: int, num_channels: int) -> None:
        import numpy as np

        self.num_channels = num_channels
        self.labels = np.full(1, -1)
        self._image = np.zeros((side, side, num_channels), dtype=np.uint8)

    def __len__(self) -> int:
        return 1

    def name(self, index: int) -> str:
        return "blank"

    def fingerprint(self) -> dict[str, object]:
        return {"kind": "blank"}

    def read(self, index: int) -> NDArray[np.uint8]:
        return self._image

    def read_clips(self, index: int, choose: ChooseTimes) -> list[NDArray[np.uint8]]:
        import numpy as np

        from torchjepa.data import VideoInfo

        return [np.stack([self._image] * len(times)) for times in choose(VideoInfo(60.0, 25.0))]


def _followed(plan: Plan) -> Footprint:
    from torchjepa.engine import follow_update

    recipe = plan.recipe
    return follow_update(
        lambda: recipe.seeded_learner(plan.num_channels, plan.total_steps),
        view_shapes(recipe, plan.num_channels),
        recipe.train_settings(plan.total_steps),
        plan.num_devices,
    )


def _timed(argv: Sequence[str]) -> Speed:
    # In a process of its own: its memory is then that of a training run, and running out of it ends only that.
    try:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            return pool.submit(time_here, list(argv)).result()
    except BrokenProcessPool:
        raise ValueError(
            "The process that timed updates was killed, most often because memory ran out; --no-speed leaves the "
            "timing out, a smaller --batch-size or --accumulate makes it fit."
        ) from None


def time_here(argv: Sequence[str]) -> Speed:
    """Time a few updates of the run that these arguments stand for, in this process."""
    from torchjepa.engine import time_updates

    plan = make_plan(argv)
    recipe = plan.recipe
    return time_updates(
        lambda: recipe.seeded_learner(plan.num_channels, plan.total_steps),
        view_shapes(recipe, plan.num_channels),
        recipe.train_settings(plan.total_steps),
        plan.num_devices,
    )


def _as_json(plan: Plan, footprint: Footprint, speed: Speed | None) -> dict[str, Any]:
    """Everything that is printed, with plain names; bytes, seconds and operations."""
    memory: dict[str, Any] = {"at_peak": footprint.peak, "whole": footprint.whole, "tensors": footprint.bytes}
    memory |= {"overhead": footprint.overhead, "process": footprint.process}
    content: dict[str, Any] = {
        "recipe": plan.name,
        "data": plan.data,
        "batch_size": plan.recipe.batch_size,
        "devices": plan.num_devices,
        "total_steps": plan.total_steps,
        "parameters": footprint.parameters,
        "flops_per_sample": footprint.flops,
        "memory": memory,
        "sent_per_step": footprint.sent,
    }
    if speed is not None:
        content["measured"] = {**dataclasses.asdict(speed), "samples_per_second": speed.samples_per_second}
    return content

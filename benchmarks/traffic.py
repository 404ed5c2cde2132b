"""Count what the processes of a recipe tell each other in one update, and what each of them keeps.

    torchrun --nproc-per-node 2 -m benchmarks.traffic ijepa-tiny ddp
    torchrun --nproc-per-node 2 -m benchmarks.traffic ijepa-tiny fsdp accumulate=2

Megabytes (1e6 bytes) of the third update, on the CPU. An operation's bytes are those of the whole tensor; *sent* is
what each process sends when operations run in a ring. Words with `=` are fields of the recipe.
"""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterable

import torch
from torch import Tensor

from torchjepa.data import BatchStream, ErrorLog, open_data
from torchjepa.engine import KeyedSampler
from torchjepa.engine.devices import launch
from torchjepa.engine.sharding import local
from torchjepa.engine.step import Stepper
from torchjepa.engine.traffic import Traffic
from torchjepa.recipes.find import find_recipe


def main(name: str, strategy: str, *words: str) -> None:
    torch.set_num_threads(1)
    fields = {key: ast.literal_eval(value) for key, _, value in (word.partition("=") for word in words)}
    recipe = dataclasses.replace(
        find_recipe(name), accelerator="cpu", precision="32", strategy=strategy, **{"batch_size": 8, **fields}
    )
    split = open_data(None, seed=recipe.seed)
    settings = recipe.train_settings(3)
    fabric = launch(settings)
    learner = recipe.seeded_learner(split.train.num_channels, 3)
    stepper = Stepper(fabric, learner, settings)
    sampler = KeyedSampler(
        len(split.train),
        recipe.batch_size,
        seed=recipe.seed,
        total_steps=3,
        accumulate=recipe.accumulate,
        rank=fabric.global_rank,
        world_size=fabric.world_size,
    )
    transform = recipe.build_transform(recipe.preprocessing(split.train.num_channels))
    errors = ErrorLog(None, len(split.train), 0.0)
    source = BatchStream(split.train, transform, seed=recipe.seed, errors=errors)
    stream = source.batches(sampler, fabric.device)
    for step in range(2):  # in the second DDP still arranges its buckets
        stepper.update(stream, step)
    with Traffic() as traffic:
        stepper.update(stream, 2)
    if fabric.is_global_zero:
        _report(f"{name} {strategy} {' '.join(words)}", stepper, traffic, fabric.world_size)


def _report(title: str, stepper: Stepper, traffic: Traffic, num_processes: int) -> None:
    parameters = list(stepper.trained.parameters())
    trained = [each for each in parameters if each.requires_grad]
    frozen = [each for each in parameters if not each.requires_grad]
    print(f"{title}, {num_processes} processes")
    print(f"  parameters   {_megabytes(trained):9.3f} MB trained, {_megabytes(frozen):.3f} MB frozen")
    print(f"  each keeps   {_megabytes(map(local, trained)):9.3f} MB trained, ", end="")
    print(f"{_megabytes(map(local, frozen)):.3f} MB frozen")
    for kind, size in traffic.bytes.items():
        print(f"  {kind:14s} {size / 1e6:8.3f} MB in {traffic.calls[kind]} calls")
    print(f"  sent         {traffic.sent(num_processes) / 1e6:9.3f} MB by each process")


def _megabytes(tensors: Iterable[Tensor]) -> float:
    return sum(each.numel() * each.element_size() for each in tensors) / 1e6


if __name__ == "__main__":
    main(*sys.argv[1:])

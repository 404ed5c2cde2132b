"""Which process this is and on what it trains; lightning-fabric is met here."""

from __future__ import annotations

import inspect
import os
from typing import TYPE_CHECKING, Any

import torch

from torchjepa import dist
from torchjepa.engine.host_memory import use_huge_pages
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.sharding import shard
from torchjepa.nn.precision import has_quick_bfloat16

if TYPE_CHECKING:
    from lightning_fabric import Fabric
    from lightning_fabric.strategies import Strategy


def is_main_process() -> bool:
    """Whether this process writes, judges and reports: rank 0, known before any process group is up.

    Read from the launcher's environment (torchrun, SLURM or lightning-fabric); true when there is none.
    """
    if dist.is_distributed():
        return dist.rank() == 0
    for name in ("RANK", "SLURM_PROCID"):
        if name in os.environ:
            return int(os.environ[name]) == 0
    return all(int(os.environ.get(name, 0)) == 0 for name in ("NODE_RANK", "LOCAL_RANK"))


def resolve_precision(precision: str, accelerator: str) -> str:
    """What precision `auto` stands for: bf16-mixed where bfloat16 products are done in hardware, else 32.

    Args:
        precision: `auto`; anything else is given back.
        accelerator: auto, cpu, gpu, cuda or mps.
    """
    if precision != "auto":
        return precision
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "32"
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available())
    return "bf16-mixed" if on_cpu and has_quick_bfloat16() else "32"


def launch(settings: TrainSettings) -> Fabric:
    """Bring up the devices and, with several, the processes.

    Args:
        settings: accelerator, devices, nodes, strategy and precision.

    Raises:
        ValueError: torchrun started another number of processes than `devices` says, or the device cannot
            do the precision.
    """
    from lightning_fabric import Fabric

    _check_precision(settings)
    devices, num_nodes = _layout(settings)
    fabric = Fabric(
        accelerator=settings.accelerator,
        devices=devices,
        num_nodes=num_nodes,
        strategy=_strategy(settings, devices * num_nodes),
        precision="32-true" if settings.precision == "32" else settings.precision,  # type: ignore[arg-type]
    )
    fabric.launch()
    if fabric.device.type == "cpu":
        use_huge_pages()
    if dist.world_size() != fabric.world_size:
        raise ValueError(
            f"A process group of {dist.world_size()} is already up, but devices and num_nodes give "
            f"{fabric.world_size}; start the processes with torchrun, or leave the process group to train."
        )
    return fabric


def _strategy(settings: TrainSettings, num_processes: int) -> Strategy | str:
    """How the processes work together; one alone needs no strategy, whatever it is called."""
    from lightning_fabric.strategies import DDPStrategy, ModelParallelStrategy

    if num_processes == 1:
        return "auto"
    if settings.strategy == "fsdp":
        return ModelParallelStrategy(
            lambda module, mesh: shard(module, mesh["data_parallel"]),
            data_parallel_size=num_processes,
            tensor_parallel_size=1,
        )
    # Buffers are equal on all ranks by construction (global batch norm, EMA), so broadcasting them every
    # step would only cost time. torch 2.13 has another word for it and warns of the old one.
    known = inspect.signature(torch.nn.parallel.DistributedDataParallel).parameters
    broadcast = "forward_sync_buffers" if "forward_sync_buffers" in known else "broadcast_buffers"
    options: dict[str, Any] = {broadcast: False}
    options["find_unused_parameters"] = settings.strategy == "ddp_find_unused_parameters_true"
    return DDPStrategy(**options)


def _layout(settings: TrainSettings) -> tuple[int, int]:
    """Devices of a node and number of nodes."""
    if not torch.distributed.is_available() or not torch.distributed.is_torchelastic_launched():
        return _num_devices(settings), settings.num_nodes
    local = int(os.environ["LOCAL_WORLD_SIZE"])
    if settings.devices not in (1, "auto", local):
        raise ValueError(
            f"torchrun started {local} process(es) on this node, but devices is {settings.devices}; "
            "leave devices out, or let both say the same."
        )
    return local, int(os.environ["WORLD_SIZE"]) // local


def _num_devices(settings: TrainSettings) -> int:
    if settings.devices != "auto":
        return settings.devices
    return torch.cuda.device_count() if _on_cuda(settings) else 1


def _on_cuda(settings: TrainSettings) -> bool:
    return settings.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()


def _check_precision(settings: TrainSettings) -> None:
    # Here and not left to fabric, which would go on in bfloat16.
    if settings.precision == "16-mixed" and not _on_cuda(settings):
        raise ValueError(
            "precision 16-mixed needs a CUDA GPU, and this run has none: elsewhere float16 is slow, and its "
            "gradients vanish without the GPU's loss scaling. Use bf16-mixed or 32."
        )

"""jepa embed: write the features of a folder of images to .npz, .parquet or .csv."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    from torch import Tensor, nn

_LEAST_FOR_WORKERS = 2000


@dataclasses.dataclass(frozen=True)
class EmbedCommand:
    """Write one feature vector for each image: ids (paths), features, labels.

    Images are read, encoded and written batch by batch, so that a million of them fit in memory.
    """

    run: Annotated[str, tyro.conf.Positional]
    """Run folder, runs/digits say."""
    data: str
    """Folder of images at any depth, or an .npz / .npy array."""
    out: str = "features.npz"
    """File to write: .npz, .parquet or .csv."""
    batch_size: int = 256
    """Images that are loaded together; on a CPU 32 at a time are encoded."""
    num_workers: int | None = None
    """Processes that load images. Default: one for each processor but one, at most 8; none for few images."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    precision: Literal["32", "bf16-mixed"] = "32"
    """bf16-mixed encodes under bfloat16 autocast, faster where the hardware multiplies bfloat16; how far the features
    are from float32's is said."""
    max_data_errors: float = 0.01
    """Share of undecodable files above which nothing is written; below it they are listed and left out."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa embed` with these arguments."""
    command = tyro.cli(EmbedCommand, args=list(argv), prog="jepa embed")
    from pathlib import Path

    from rich.console import Console
    from rich.progress import track

    from torchjepa.cli.devices import pick_device
    from torchjepa.cli.opening import open_run
    from torchjepa.data import ErrorLog, EvalStream, open_source
    from torchjepa.engine.host_memory import keep_freed_memory
    from torchjepa.evaluation import stream_features, write_features
    from torchjepa.nn.pooling import pool_by_name

    opened = open_run(command.run)
    device = pick_device(command.device)
    if device.type == "cpu":
        keep_freed_memory()
    encoder = opened.encoder
    # Every image is read once: what was decoded is not kept.
    source = open_source(command.data, 2 * encoder.preprocessing.image_size, cache_bytes=0)
    out = Path(command.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    error_file = out.with_suffix(".data_errors.jsonl")
    error_file.unlink(missing_ok=True)  # of an earlier call; its lines would count
    errors = ErrorLog(error_file, len(source), max_fraction=command.max_data_errors)
    workers = command.num_workers
    stream = EvalStream(
        source,
        encoder.preprocessing,
        batch_size=command.batch_size,
        num_workers=_num_workers(len(source)) if workers is None else workers,
        errors=errors,
    )
    encode, pool = encoder.model.to(device), pool_by_name(encoder.pool)
    if command.precision == "bf16-mixed":
        encode, pool = _in_bfloat16(encode, pool, device.type), None
    chunks = stream_features(encode, stream, device=device, pool=pool)
    console = Console(stderr=True)
    shown = track(
        chunks,
        "Embedding",
        total=len(stream),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    num = write_features(out, shown, name=source.name, classes=source.classes)
    left_out = f"; {len(errors)} undecodable files are listed in {error_file}" if len(errors) else ""
    print(f"Wrote the features of {num} images to {out}{left_out}")
    return 0


def _num_workers(num_images: int) -> int:
    # One processor is left to the encoder; for few images the workers' start takes longer than they save.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(processors - 1, 8) if num_images >= _LEAST_FOR_WORKERS else 0


def _in_bfloat16(
    model: nn.Module, pool: Callable[[Tensor], Tensor], device: str
) -> Callable[[Tensor], Tensor]:
    import torch

    compared = False

    def encode(x: Tensor) -> Tensor:
        nonlocal compared
        with torch.autocast(device, torch.bfloat16):
            features = pool(model(x)).float()
        if not compared:
            compared = True
            exact = pool(model(x))
            apart = float((features - exact).norm() / exact.norm())
            print(f"bfloat16 moves the features of the first {len(x)} images by {apart:.1e} of their length.")
        return features

    return encode

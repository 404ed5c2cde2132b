"""jepa embed: write the features of a folder of images to .npz, .parquet or .csv."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Annotated

import tyro


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
    """Images encoded at once."""
    num_workers: int = 0
    """Processes that load images."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
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
    from torchjepa.evaluation import stream_features, write_features
    from torchjepa.nn.pooling import pool_by_name

    opened = open_run(command.run)
    device = pick_device(command.device)
    encoder = opened.encoder
    source = open_source(command.data, 2 * encoder.preprocessing.image_size)
    out = Path(command.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    error_file = out.with_suffix(".data_errors.jsonl")
    error_file.unlink(missing_ok=True)  # of an earlier call; its lines would count
    errors = ErrorLog(error_file, len(source), max_fraction=command.max_data_errors)
    stream = EvalStream(
        source,
        encoder.preprocessing,
        batch_size=command.batch_size,
        num_workers=command.num_workers,
        errors=errors,
    )
    chunks = stream_features(encoder.model.to(device), stream, device=device, pool=pool_by_name(encoder.pool))
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

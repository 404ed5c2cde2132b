"""jepa embed: write the features of a folder of images or videos to .npz, .parquet or .csv."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from torchjepa.data import ErrorLog, Preprocessing, Source
    from torchjepa.evaluation import Features
    from torchjepa.hub import LoadedEncoder, Pretrained

_LEAST_FOR_WORKERS = 2000
_BATCH = 256
_VALUES_TOGETHER = 2**24  # of clips that are loaded together, 64 MiB


@dataclasses.dataclass(frozen=True)
class EmbedCommand:
    """Write one feature vector for each image, video or window of a video: ids (paths), features, labels.

    The encoder is that of a run, or any that torchjepa opens (--model). Inputs are read, encoded and written batch by
    batch, so that a million of them, or one of many hours, fit in memory.
    """

    data: str
    """Folder of images or videos at any depth, one video, a table of pieces of videos (CSV: path, start, end, label),
    or an .npz / .npy array of images."""
    run: Annotated[str | None, tyro.conf.Positional] = None
    """Run folder, runs/digits say."""
    model: str | None = None
    """Instead of a run: an official file, a safetensors file, a folder, or a hub id (jepa models lists them)."""
    which: str = "target_encoder"
    """Of --model: target_encoder or encoder."""
    num_heads: int | None = None
    """Of --model: attention heads, where the source does not tell."""
    out: str = "features.npz"
    """File to write: .npz, .parquet or .csv."""
    window: int | None = None
    """Of videos: frames of a window; one row for each window. Default: one row for each video."""
    stride: int | None = None
    """Of videos: frames from the beginning of a window to that of the next. Default: those of a window."""
    batch_size: int | None = None
    """Images that are loaded together, 256 by default (on a CPU 32 at a time are encoded); or clips that are encoded
    together, by default as many as make 8,192 tokens."""
    num_workers: int | None = None
    """Processes that load images. Default: one for each processor but one, at most 8; none for few images, nor where
    the encoder works on one or two processors. For photographs of a megapixel and more two are faster there."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""
    precision: Literal["32", "bf16-mixed"] = "32"
    """bf16-mixed encodes under bfloat16 autocast, faster where the hardware multiplies bfloat16; how far the features
    of images are from float32's is said."""
    max_data_errors: float = 0.01
    """Share of undecodable files above which nothing is written; below it they are listed and left out."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa embed` with these arguments."""
    command = tyro.cli(EmbedCommand, args=list(argv), prog="jepa embed")
    if (command.run is None) == (command.model is None):
        raise ValueError("jepa embed needs a run folder or --model SOURCE, one of the two.")
    from torchjepa.cli.devices import pick_device
    from torchjepa.data.video_source import is_table
    from torchjepa.engine.host_memory import keep_freed_memory
    from torchjepa.hub.encode import num_input_axes

    opened = _open(command)
    device = pick_device(command.device)
    if device.type == "cpu":
        keep_freed_memory()
    out = Path(command.out)
    out.parent.mkdir(parents=True, exist_ok=True)
    error_file = out.with_suffix(".data_errors.jsonl")
    error_file.unlink(missing_ok=True)  # of an earlier call; its lines would count
    if num_input_axes(opened.model, opened.preprocessing) == 3 and not is_table(command.data):
        written, errors = _embed_videos(command, opened, device, out, error_file)
    else:
        written, errors = _embed_samples(command, opened, device, out, error_file)
    left_out = f"; {len(errors)} undecodable files are listed in {error_file}" if len(errors) else ""
    print(f"Wrote the features of {written} to {out}{left_out}")
    return 0


def _open(command: EmbedCommand) -> LoadedEncoder | Pretrained:
    if command.run is not None:
        from torchjepa.cli.opening import open_run

        return open_run(command.run).encoder
    from torchjepa.hub import load

    assert command.model is not None
    loaded = load(command.model, command.which, num_heads=command.num_heads)
    print(loaded.report.summary())
    return loaded


def _embed_samples(
    command: EmbedCommand,
    opened: LoadedEncoder | Pretrained,
    device: torch.device,
    out: Path,
    error_file: Path,
) -> tuple[str, ErrorLog]:
    from rich.console import Console
    from rich.progress import track

    from torchjepa.data import ErrorLog, EvalStream
    from torchjepa.evaluation import stream_features, write_features
    from torchjepa.nn.pooling import pool_by_name

    preprocessing = opened.preprocessing
    if preprocessing is None:
        raise ValueError(
            "This model does not say what images go through before it; use torchjepa.hub.encode."
        )
    source, kind, together = _open_samples(command, preprocessing)
    errors = ErrorLog(error_file, len(source), max_fraction=command.max_data_errors)
    workers = command.num_workers
    stream = EvalStream(
        source,
        preprocessing,
        batch_size=together if command.batch_size is None else command.batch_size,
        num_workers=_num_workers(len(source), device.type) if workers is None else workers,
        errors=errors,
    )
    encode, pool = opened.model.to(device), pool_by_name(opened.pool)
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
    return f"{num} {kind}", errors


def _open_samples(command: EmbedCommand, preprocessing: Preprocessing) -> tuple[Source, str, int]:
    """The images, or the pieces of videos that a table names; what they are called; how many are loaded together."""
    from torchjepa.data import open_source, open_video_source

    size = 2 * preprocessing.image_size
    if preprocessing.num_frames is None:
        if command.window is not None or command.stride is not None:
            raise ValueError("--window and --stride are for encoders of videos; this one takes images.")
        # Every image is read once: what was decoded is not kept.
        return open_source(command.data, size, cache_bytes=0), "images", _BATCH
    if command.window is not None or command.stride is not None:
        raise ValueError(
            "--window and --stride are for videos and folders of them; a table says itself what its pieces are."
        )
    values = preprocessing.num_channels * preprocessing.num_frames * preprocessing.image_size**2
    source = open_video_source(command.data, min_size=size, cache_bytes=0)
    return source, "pieces of videos", max(1, min(_BATCH, _VALUES_TOGETHER // values))


def _embed_videos(
    command: EmbedCommand,
    opened: LoadedEncoder | Pretrained,
    device: torch.device,
    out: Path,
    error_file: Path,
) -> tuple[str, ErrorLog]:
    from torchjepa.data import ErrorLog
    from torchjepa.evaluation import write_features
    from torchjepa.hub.samples import file_names, is_video

    names = file_names(Path(command.data), num_axes=3)
    errors = ErrorLog(error_file, len(names), max_fraction=command.max_data_errors)
    folders = Path(command.data).is_dir()
    classes = sorted({_top(names[i]) for i in range(len(names))} - {""}) if folders else []
    rows: list[str] = []
    chunks = _encode_videos(command, opened, device, errors, classes, rows)
    num = write_features(out, chunks, name=rows.__getitem__, classes=classes)
    total = len(names) - len(errors)
    kind = f"video{'s' * (total != 1)}" if is_video(names[0]) else "images, each shown as a still clip,"
    read = f"{total} {kind}"
    return read if command.window is None else f"{num} windows of {read}", errors


def _encode_videos(
    command: EmbedCommand,
    opened: LoadedEncoder | Pretrained,
    device: torch.device,
    errors: ErrorLog,
    classes: list[str],
    rows: list[str],
) -> Iterator[Features]:
    """The features of each batch; what stands in `ids` for each row is added to `rows`."""
    import torch

    from torchjepa.evaluation import Features
    from torchjepa.hub import stream_encoded

    places = {name: i for i, name in enumerate(classes)}
    for chunk in stream_encoded(
        opened,
        command.data,
        batch_size=command.batch_size,
        window=command.window,
        stride=command.stride,
        device=device,
        precision=command.precision,
        errors=errors,
    ):
        ids = torch.arange(len(rows), len(rows) + len(chunk))
        if command.window is None or chunk.seconds is None:
            rows += chunk.names
        else:
            times = chunk.seconds.tolist()
            rows += [f"{name}@{start:.3f}-{end:.3f}" for name, (start, end) in zip(chunk.names, times)]
        labels = torch.tensor([places.get(_top(name), -1) for name in chunk.names])
        yield Features(chunk.features, labels, ids)


def _top(name: str) -> str:
    return name.split("/", 1)[0] if "/" in name else ""


def _num_workers(num_images: int, device: str) -> int:
    # One processor is left to the encoder; for few images the workers' start takes longer than they save.
    processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    # An encoder on two processors stands still wherever a worker takes one of them: reading beside it saves nothing.
    crowded = device == "cpu" and processors <= 2
    return 0 if crowded or num_images < _LEAST_FOR_WORKERS else min(processors - 1, 8)


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

"""jepa export: write an encoder or predictor for transformers, timm, onnx or torch.export, read it back and compare."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

if TYPE_CHECKING:
    from torchjepa.hub import LoadedEncoder, Pretrained
    from torchjepa.hub.export import Exported


@dataclasses.dataclass(frozen=True)
class ExportCommand:
    """Write a part of a model in a format that others read.

    The file is read back by its own consumer (onnxruntime, transformers, timm, torch.export.load), its outputs are
    compared with torchjepa's, and the deviation is printed; a file that deviates too much is not kept.
    """

    source: Annotated[str, tyro.conf.Positional]
    """Run folder, encoder folder, official or transformers checkpoint, or an id on the Hugging Face hub."""
    format: str
    """safetensors (an encoder folder), transformers, timm, onnx or torch-export."""
    part: Literal["encoder", "predictor", "rollout"] = "encoder"
    """encoder; predictor of masked tokens; rollout: the next frames from actions and states (V-JEPA 2-AC)."""
    dynamic: bool = False
    """Leave the batch open, and a predictor's numbers of tokens; otherwise the batch is one. For onnx and
    torch-export."""
    half: bool = False
    """Weights in float16, and the arithmetic too in onnx and torch-export; inputs and outputs stay float32."""
    int8: bool = False
    """Weights in int8, activations rounded while running. For onnx."""
    steps: int = 1
    """Frames that a rollout predicts, each fed back."""
    which: Literal["target_encoder", "encoder"] = "target_encoder"
    """Which encoder of a released checkpoint: the one that the papers evaluate, or the online one."""
    image_size: int | None = None
    """Side of the inputs in pixels, where it shall not be the one that the model was trained at."""
    num_frames: int | None = None
    """Frames of a clip, likewise."""
    num_heads: int | None = None
    """Attention heads, for checkpoints that do not tell."""
    out: str | None = None
    """File or folder to write. Default: <name>-<part> with the format's ending, in the current folder."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa export` with these arguments."""
    command = tyro.cli(ExportCommand, args=list(argv), prog="jepa export")
    from torchjepa.hub.export import export, formats

    if command.half and command.int8:
        raise ValueError("--half and --int8 exclude each other; choose one.")
    known = formats()
    if command.format not in known:
        raise ValueError(f"There is no format {command.format!r}; the formats are {', '.join(known)}.")
    is_run = (Path(command.source) / "run.json").is_file()
    exported = export(
        _resized(_open_run(command) if is_run else _open(command), command),
        command.out or _default_out(command, known[command.format].suffix),
        format=command.format,
        part=command.part,
        precision="half" if command.half else "int8" if command.int8 else "full",
        dynamic=command.dynamic,
        num_steps=command.steps,
        run=command.source if is_run else None,
    )
    _tell(command, exported)
    return 0


def _open_run(command: ExportCommand) -> LoadedEncoder:
    """The run's encoder, and its predictor where that is asked for: only checkpoints hold it."""
    from torchjepa.cli.opening import open_run

    opened = open_run(command.source)
    if command.part == "encoder":
        return opened.encoder
    newest = opened.newest(opened.encoder.preprocessing.num_channels)
    predictor = getattr(newest.learner, "predictor", None)
    if predictor is None:
        why = (
            "keeps no checkpoint" if newest.learner is None else f"trained a {type(newest.learner).__name__}"
        )
        raise ValueError(f"{command.source} has no predictor: it {why}. Export --part encoder.")
    return dataclasses.replace(opened.encoder, parts={"predictor": predictor.eval()})


def _open(command: ExportCommand) -> Pretrained:
    from torchjepa.hub import load

    # A predictor is part of transformers' video models.
    with_predictor = command.part != "encoder" or command.format == "transformers"
    if not with_predictor:
        return load(command.source, command.which, num_heads=command.num_heads)
    pretrained = load(command.source, "all", num_heads=command.num_heads)
    model = pretrained.parts.get(command.which, pretrained.model)
    return dataclasses.replace(pretrained, model=model)


def _resized(source: LoadedEncoder | Pretrained, command: ExportCommand) -> LoadedEncoder | Pretrained:
    asked = {"image_size": command.image_size, "num_frames": command.num_frames}
    changes: dict[str, Any] = {name: value for name, value in asked.items() if value is not None}
    if not changes:
        return source
    if source.preprocessing is None:
        raise ValueError(
            f"{command.source} says nothing of its inputs, which {', '.join(changes)} could change."
        )
    preprocessing = dataclasses.replace(source.preprocessing, **changes)
    return dataclasses.replace(source, preprocessing=preprocessing)


def _default_out(command: ExportCommand, suffix: str) -> str:
    name = Path(command.source).name
    for ending in (".tar", ".pth", ".pt", ".safetensors"):
        name = name.removesuffix(ending)
    return f"{name}-{command.part}{suffix or f'-{command.format}'}"


def _tell(command: ExportCommand, exported: Exported) -> None:
    size = exported.num_bytes
    shown = f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.0f} kB"
    print(f"Wrote the {command.part} of {command.source} to {exported.path} ({shown})")
    print(f"  {exported.signature}")
    found = ", ".join(f"{name} {value:.1e}" for name, value in exported.deviations.items())
    print(
        f"Read back by {exported.consumer}; largest difference to torchjepa over the largest value: {found} "
        f"({exported.tolerance:.0e} is allowed)"
    )

"""An encoder folder as `torchjepa.save` writes it: safetensors, configuration, preprocessing, model card."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

from torch import nn

import torchjepa
from torchjepa.hub.encoder import CUSTOM, LoadedEncoder, load_encoder, read_config
from torchjepa.hub.export import Consumer, Format, Job
from torchjepa.hub.parts import make_part
from torchjepa.hub.save import save


def _write(job: Job, path: Path) -> None:
    source, alone = job.source, job.part.name == "encoder"
    parts = {} if alone else {name: part for name, part in source.parts.items() if part is not source.model}
    if source.preprocessing is None:
        raise ValueError(
            "export: the source has no preprocessing, and an encoder folder needs one; give it to torchjepa.save."
        )
    kept = LoadedEncoder(source.model, source.pool, source.preprocessing, source.config, parts)
    if job.precision == "half":
        halves = {name: _half(part) for name, part in parts.items()}
        kept = replace(kept, model=_half(source.model), parts=halves)
    save(kept, path, run=job.run)


def _half(network: nn.Module) -> nn.Module:
    return copy.deepcopy(network).half()


def _read(job: Job, path: Path) -> Consumer:
    # A network that torchjepa.nn does not have is brought along, as whoever loads the folder has to.
    is_custom = read_config(path / "config.json")["architecture"] == CUSTOM
    model = copy.deepcopy(job.source.model) if is_custom else None
    loaded = load_encoder(path, model, parts=_parts(job))
    part = make_part(loaded, job.part.name, dynamic=job.dynamic, num_steps=job.num_steps)
    return part.__call__


def _parts(job: Job) -> tuple[str, ...]:
    return () if job.part.name == "encoder" else ("predictor",)


FORMAT = Format(
    write=_write,
    read=_read,
    consumer=lambda: f"torchjepa {torchjepa.__version__}",
    suffix="",
    parts=("encoder", "predictor", "rollout"),
    precisions=("full", "half"),
    dynamic=False,
    refusals={"int8": "safetensors hold weights and no arithmetic; use --half, or --format onnx --int8"},
)

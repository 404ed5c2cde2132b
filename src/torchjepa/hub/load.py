"""`torchjepa.load`: any JEPA checkpoint to working networks, strictly, with a report."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Unpack

from torch import Tensor, nn

from torchjepa.data import Preprocessing
from torchjepa.hub.building import Built, build
from torchjepa.hub.choosing import choose_family, choose_parts
from torchjepa.hub.encode import Encoded, EncodeOptions, encode
from torchjepa.hub.encoder import OWN_FAMILY, load_encoder, read_config
from torchjepa.hub.family import kind_of
from torchjepa.hub.inputs import infer_preprocessing
from torchjepa.hub.naming import Names, split_names
from torchjepa.hub.report import LoadReport
from torchjepa.hub.sources import is_own_folder, locate, open_source

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pretrained:
    """What `load` gives: networks in evaluation mode and how to use them.

    Args:
        model: the part that was asked for; the target encoder, else the encoder, for `which="all"`.
        parts: every network that was loaded, by name.
        family: `"ijepa"`, `"vjepa2"`, `"torchjepa"` (trained here), ...
        preprocessing: what an input goes through before it meets the encoder, `None` where nobody says.
        pool: name of the pooling to use it with, for `torchjepa.nn.pool_by_name`.
        config: declarative: the family, and the architecture and arguments of every part.
        report: what became of every tensor of the file.
    """

    model: nn.Module
    parts: Mapping[str, nn.Module]
    family: str
    preprocessing: Preprocessing | None
    pool: str
    config: Mapping[str, Any]
    report: LoadReport

    def encode(self, inputs: Any, **options: Unpack[EncodeOptions]) -> Encoded:
        """Features of images and videos, of files or in memory: `torchjepa.hub.encode` with this model."""
        return encode(self, inputs, **options)


def load(
    source: str | Path,
    which: str = "target_encoder",
    *,
    num_heads: int | Mapping[str, int] | None = None,
    family: str | None = None,
    revision: str | None = None,
) -> Pretrained:
    """Open a JEPA checkpoint: one of ours, a released one, or a transformers conversion.

    Family, depth, width, patch, tubelet and mask tokens follow from the tensors, heads from `config.json` or the table
    of known models. Every tensor of the file is accounted for. Tensors stay memory-mapped: nothing is copied but
    queries, keys and values that a file keeps apart.

    Args:
        source: a run folder, an encoder folder, an official file (`.pth.tar`, `.pt`), a safetensors file, a
            transformers folder, or a hub id such as `facebook/ijepa_vith14_1k`.
        which: `target_encoder` (the default, which the papers evaluate), `encoder` (the online one), `predictor`,
            `classifier` (`classifiers.7` for one of several), or `all`. What was taken is logged and reported.
        num_heads: attention heads, where neither the source nor the table of known models tells: one number for all
            networks, or one by kind, `{"encoder": 16, "predictor": 12}`.
        family: the family by name, where the tensors alone do not tell it.
        revision: branch, tag or commit on the hub.

    Returns:
        The networks, in the dtype of the file, and what belongs to them.

    Raises:
        ValueError: the file is refused, of no known family or without what was asked for, or it has tensors that are
            missing, do not fit, are not finite, or that nothing explains; nothing is loaded then.
    """
    path = locate(source, revision)
    if is_own_folder(path):
        return _load_own(path, str(source), which)
    opened = open_source(path, str(source))
    names = split_names(opened.tensors.names)
    found = choose_family(opened, family)
    wanted, notes = choose_parts(found, names, which, str(source))
    built = {
        public: build(found, part, names.parts[part], opened, num_heads) for public, part in wanted.items()
    }
    report = _report(
        LoadReport(opened.name, found.name, which, notes=notes), opened.tensors.names, names, built
    )
    report.refuse_gaps()
    parts = {name: part.network for name, part in built.items()}
    encoder = next((part for name, part in parts.items() if kind_of(name) == "encoder"), None)
    preprocessing = None
    if encoder is not None:
        preprocessing, notes = infer_preprocessing(found, encoder, opened.config, opened.processor)
        report = report.with_notes(notes)
    _log.info("%s", report.summary())
    return Pretrained(
        _model(parts), parts, found.name, preprocessing, "mean", _describe(found.name, parts), report
    )


def _load_own(folder: Path, source: str, which: str) -> Pretrained:
    """A folder that `save_encoder` wrote: its encoder is the one that is judged and deployed."""
    config = read_config(folder / "config.json")
    family, kept = str(config.get("family", OWN_FAMILY)), tuple(config.get("parts", {}))
    main = "encoder" if "target_encoder" in kept else "target_encoder"
    further = kept if which == "all" else tuple(name for name in kept if name == which)
    if which not in ("all", main, *kept) and kind_of(which) != "encoder":
        raise ValueError(f"load: {source} has no {which}; it has {', '.join((main, *kept))}.")
    loaded = load_encoder(folder, parts=further)
    parts = {main: loaded.model, **loaded.parts}
    if further and which != "all":
        parts = dict(loaded.parts)
    note = "the folder holds the encoder that was deployed"
    if which == "encoder" and not further and (online := _online_weights(folder)):
        loaded.model.load_state_dict(online)
        parts, note = {which: loaded.model}, "the online encoder, of the run's newest checkpoint"
    names = tuple(f"{part}.{name}" for part, network in parts.items() for name in network.state_dict())
    report = LoadReport(source, family, which, loaded=names, notes=() if further else (note,))
    _log.info("%s", report.summary())
    described = {**config, **_describe(family, parts)}
    return Pretrained(_model(parts), parts, family, loaded.preprocessing, loaded.pool, described, report)


def _online_weights(folder: Path) -> dict[str, Tensor]:
    """What a run's newest checkpoint has of an encoder beside its target encoder; nothing where it has no two."""
    if not (folder.parent / "run.json").is_file():
        return {}
    from torchjepa.engine import newest_checkpoint  # brings lightning-fabric

    checkpoint = newest_checkpoint(folder.parent / "checkpoints")
    tensors = {} if checkpoint is None else checkpoint.tensors()
    if not any(name.startswith("target_encoder.") for name in tensors):
        return {}
    start = "encoder."
    return {name.removeprefix(start): tensor for name, tensor in tensors.items() if name.startswith(start)}


def _model(parts: Mapping[str, nn.Module]) -> nn.Module:
    return next(
        (parts[name] for name in ("target_encoder", "encoder") if name in parts), next(iter(parts.values()))
    )


def _describe(family: str, parts: Mapping[str, nn.Module]) -> dict[str, Any]:
    described = {
        name: {"architecture": type(part).__name__, "kwargs": _kwargs(part)} for name, part in parts.items()
    }
    return {"family": family, "parts": described}


def _kwargs(part: nn.Module) -> Any:
    if isinstance(part, nn.Linear):
        return {"in_features": part.in_features, "out_features": part.out_features}
    return part.config


def _report(
    report: LoadReport, every: tuple[str, ...], names: Names, built: Mapping[str, Built]
) -> LoadReport:
    kinds = ("loaded", "reshaped", "dropped", "missing", "unexplained", "notes")
    gathered = {
        kind: tuple(line for part in built.values() for line in getattr(part, kind)) for kind in kinds
    }
    seen = {full for part in built.values() for full in part.seen}
    return LoadReport(
        report.source,
        report.family,
        report.which,
        loaded=gathered["loaded"],
        reshaped=gathered["reshaped"],
        dropped=gathered["dropped"],
        left_over=tuple(full for full in every if full not in seen and full not in names.clashes),
        missing=gathered["missing"],
        unexplained=(*gathered["unexplained"], *names.clashes),
        notes=(*report.notes, *gathered["notes"]),
    )

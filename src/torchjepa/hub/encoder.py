"""The deployable encoder: a folder with its configuration, weights and preprocessing.

`config.json` says how to build it, by names of `torchjepa.nn` and never by an import path; `model.safetensors` holds
the weights, `preprocessing.json` says what the pictures went through. Format 2 adds the family and further parts (a
predictor, say), each in a `<name>.safetensors` of its own.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import torchjepa.nn
from torchjepa.data import Preprocessing
from torchjepa.hub.reading import open_tensors, refuse_non_finite, refuse_wrong_dtypes
from torchjepa.nn import pool_by_name

FORMAT = 1
FORMAT_WITH_PARTS = 2
CUSTOM = "custom"
OWN_FAMILY = "torchjepa"
_REQUIRED = {"format", "architecture", "kwargs", "pool"}
_OPTIONAL = {"class", "extra", "family", "parts"}
_PREPROCESSING = {"image_size", "num_channels", "mean", "std"}
_PART_NAME = re.compile(r"[a-z][a-z_]*")
_OF_VIDEOS = {"num_frames", "frame_rate"}  # absent from what was written before videos were read


@dataclass(frozen=True)
class LoadedEncoder:
    """An encoder read from a folder, ready to use.

    Args:
        model: the network, in evaluation mode: inputs `[b, c, ...]` to tokens `[b, n, d]`.
        pool: name of the pooling that it was judged with, for `torchjepa.nn.pool_by_name`.
        preprocessing: what an image goes through before it meets the model.
        config: the whole of `config.json`.
        parts: further networks that were asked for, by name.
    """

    model: nn.Module
    pool: str
    preprocessing: Preprocessing
    config: Mapping[str, Any]
    parts: Mapping[str, nn.Module] = field(default_factory=dict)

    @property
    def family(self) -> str:
        """Where the weights come from, "vjepa2" say; "torchjepa" where they were trained here."""
        return str(self.config.get("family", OWN_FAMILY))


def save_encoder(
    folder: str | Path,
    encoder: nn.Module,
    *,
    pool: str,
    preprocessing: Preprocessing,
    extra: Mapping[str, Any] | None = None,
    family: str = OWN_FAMILY,
    parts: Mapping[str, nn.Module] | None = None,
    texts: Mapping[str, str] | None = None,
) -> Path:
    """Write an encoder to a folder that `load_encoder` reads; the folder appears whole or not at all.

    An encoder of `torchjepa.nn` is stored with its `config` (constructor arguments), so that it can be built
    again; any other is stored as `custom`, and whoever loads it brings the network along.

    Args:
        folder: where to write; what is there is replaced.
        encoder: the network.
        pool: name of the pooling to judge and use it with.
        preprocessing: what an image goes through before it meets the encoder.
        extra: anything else worth keeping, such as recipe and step; must fit into JSON.
        family: where the weights come from, "vjepa2" say.
        parts: further networks of `torchjepa.nn` to keep beside it, `{"predictor": ...}` say.
        texts: further text files, name to content, a model card say.

    Returns:
        The folder.

    Raises:
        ValueError: no such pooling, a part that is not of `torchjepa.nn`, or `extra` or a configuration does not
            fit into JSON.
    """
    pool_by_name(pool)
    folder, parts = Path(folder), dict(parts or {})
    config = encoder_config(encoder, pool, extra or {}, family, parts)
    pictures = {name: value for name, value in asdict(preprocessing).items() if value is not None}
    texts = {
        "config.json": _to_json(config),
        "preprocessing.json": _to_json(pictures),
        **(texts or {}),
    }
    partial = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for name, text in texts.items():
        (partial / name).write_text(text)
    for name, part in {"model": encoder, **parts}.items():
        save_file(_weights(part), partial / f"{name}.safetensors", metadata={"format": "pt"})
    _swap_in(partial, folder)
    return folder


def load_encoder(
    folder: str | Path, model: nn.Module | None = None, *, parts: Iterable[str] = ()
) -> LoadedEncoder:
    """Read an encoder that `save_encoder` wrote: every tensor in its place, or an error.

    Args:
        folder: the folder, `runs/<name>/encoder` say.
        model: the network to fill, needed for an architecture that `torchjepa.nn` does not have; otherwise
            it is built from `config.json`.
        parts: names of further networks to read, `("predictor",)` say.

    Raises:
        ValueError: a file is missing or unreadable, a key is unknown or missing, there is no such part, an
            architecture is not one of `torchjepa.nn`, or tensors are missing, left over or of another shape.
    """
    folder = Path(folder)
    for name in ("config.json", "model.safetensors", "preprocessing.json"):
        _check_file(folder, name)
    config = read_config(folder / "config.json")
    if model is None:
        if config["architecture"] == CUSTOM:
            raise ValueError(
                f"load_encoder: {folder} holds a custom architecture ({config.get('class', 'unnamed')}); "
                "build it yourself and pass it: load_encoder(folder, model=...)."
            )
        model = _build(config, folder, _own_encoders())
    _fill(model, folder / "model.safetensors")
    preprocessing = _read_preprocessing(folder / "preprocessing.json")
    read = {name: _read_part(folder, config, name) for name in parts}
    return LoadedEncoder(model.eval(), config["pool"], preprocessing, config, read)


def encoder_config(
    encoder: nn.Module, pool: str, extra: Mapping[str, Any], family: str, parts: Mapping[str, nn.Module]
) -> dict[str, Any]:
    """What `save_encoder` writes to `config.json`; its arguments are those."""
    own = _own_encoders().get(type(encoder).__name__) is type(encoder)
    config: dict[str, Any] = {
        "format": FORMAT,
        "architecture": type(encoder).__name__ if own else CUSTOM,
        "kwargs": encoder.config if own else {},
        "pool": pool,
        "extra": dict(extra),
    }
    if not own:
        config["class"] = type(encoder).__qualname__  # tells a person which network to bring
    if parts or family != OWN_FAMILY:
        described = {name: _describe_part(name, part) for name, part in parts.items()}
        config |= {"format": FORMAT_WITH_PARTS, "family": family, "parts": described}
    return config


def is_own(part: object) -> bool:
    """Whether this is a network of `torchjepa.nn`, which a folder can hold beside the encoder."""
    return _own_architectures().get(type(part).__name__) is type(part)


def _describe_part(name: str, part: nn.Module) -> dict[str, Any]:
    if not _PART_NAME.fullmatch(name) or name == "model":
        raise ValueError(f"save_encoder: a part is named by a word like 'predictor', got {name!r}.")
    if not is_own(part):
        raise ValueError(
            f"save_encoder: the part {name!r} must be a network of torchjepa.nn, got {type(part).__name__}; "
            "leave it out, and save its state dict beside the folder."
        )
    return {"architecture": type(part).__name__, "kwargs": part.config}


def _read_part(folder: Path, config: Mapping[str, Any], name: str) -> nn.Module:
    described = config.get("parts", {})
    if name not in described:
        raise ValueError(
            f"load_encoder: {folder} has no part {name!r}; it has {', '.join(described) or 'the encoder alone'}."
        )
    _check_file(folder, f"{name}.safetensors")
    part = _build(described[name], folder, _own_architectures())
    _fill(part, folder / f"{name}.safetensors")
    return part.eval()


def _weights(part: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().cpu().contiguous().clone() for name, tensor in part.state_dict().items()}


def _own_encoders() -> dict[str, Any]:
    return {name: part for name, part in _own_architectures().items() if hasattr(part, "grid")}


def _own_architectures() -> dict[str, Any]:
    # The networks of torchjepa.nn and nothing else: a file never names what gets imported.
    named = {name: getattr(torchjepa.nn, name) for name in torchjepa.nn.__all__}
    return {name: part for name, part in named.items() if isinstance(part, type) and hasattr(part, "config")}


def _check_file(folder: Path, name: str) -> None:
    if not (folder / name).is_file():
        raise ValueError(f"load_encoder: {folder} has no {name}; expected a folder that save_encoder wrote.")


def _build(config: Mapping[str, Any], folder: Path, known: Mapping[str, Any]) -> nn.Module:
    name = config["architecture"]
    if not isinstance(name, str) or name not in known:
        raise ValueError(
            f"load_encoder: {folder} names the architecture {name!r}; torchjepa.nn has "
            f"{', '.join(sorted(known))}. Pass the network itself as model=..., or update torchjepa."
        )
    try:
        with torch.device("meta"):
            return known[name](**config["kwargs"])
    except TypeError as error:
        raise ValueError(
            f"load_encoder: {folder}: {name} does not take the stored arguments ({error})."
        ) from None


def _fill(model: nn.Module, path: Path) -> None:
    try:
        file = open_tensors(path)
    except ValueError as error:
        raise ValueError(f"load_encoder: {path} is damaged or not a safetensors file ({error}).") from None
    stored = {name: file.read(name) for name in file.names}
    wanted = model.state_dict()
    _refuse(path, "lacks", sorted(wanted.keys() - stored.keys()))
    _refuse(path, "has, and the model does not,", sorted(stored.keys() - wanted.keys()))
    _refuse(
        path,
        "has in another shape",
        [_shapes(name, stored, wanted) for name in wanted if stored[name].shape != wanted[name].shape],
    )
    refuse_wrong_dtypes(stored, wanted, path)
    refuse_non_finite(stored, path)
    # A network built here holds no memory and takes the mapped file's; one that was brought along keeps its own.
    model.load_state_dict(stored, assign=any(tensor.is_meta for tensor in wanted.values()))


def _shapes(name: str, stored: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    return f"{name} {tuple(stored[name].shape)} where the model has {tuple(wanted[name].shape)}"


def _refuse(path: Path, verb: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        raise ValueError(
            f"load_encoder: {path} {verb} {len(names)} of the tensors: {', '.join(names[:5])}{more}; "
            "nothing was loaded."
        )


def read_config(path: Path) -> dict[str, Any]:
    """A `config.json` whose every key has been checked, or a `ValueError`."""
    config = _from_json(path)
    if config.get("format") not in (FORMAT, FORMAT_WITH_PARTS):
        raise ValueError(
            f"load_encoder: {path} is of format {config.get('format')!r}, and this torchjepa reads {FORMAT} and "
            f"{FORMAT_WITH_PARTS}: update it, or save the encoder again."
        )
    _check_keys(path, config, _REQUIRED, _OPTIONAL)
    parts = config.get("parts", {})
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise ValueError(f"load_encoder: {path}: parts must map names to objects, got {parts!r}.")
    for name, part in parts.items():
        if not _PART_NAME.fullmatch(name):
            raise ValueError(f"load_encoder: {path}: {name!r} is not the name of a part.")
        _check_keys(path, part, {"architecture", "kwargs"}, set())
    for part in (config, *parts.values()):
        if not isinstance(part["kwargs"], dict):
            raise ValueError(f"load_encoder: {path}: kwargs must be an object, got {part['kwargs']!r}.")
    pool_by_name(str(config["pool"]))
    return config


def _read_preprocessing(path: Path) -> Preprocessing:
    values = _from_json(path)
    required = {field.name for field in fields(Preprocessing)} - _OF_VIDEOS
    _check_keys(path, values, required, _OF_VIDEOS)
    return Preprocessing(**values)


def _check_keys(path: Path, values: Mapping[str, Any], required: set[str], optional: set[str]) -> None:
    missing, unknown = sorted(required - values.keys()), sorted(values.keys() - required - optional)
    if missing or unknown:
        raise ValueError(
            f"load_encoder: {path}: missing keys {missing}, unknown keys {unknown}; "
            f"expected {sorted(required | optional)}."
        )


def _from_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"load_encoder: {path} is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"load_encoder: {path} must hold an object, got {type(values).__name__}.")
    return values


def _to_json(values: Mapping[str, Any]) -> str:
    try:
        return json.dumps(values, indent=2, allow_nan=False) + "\n"
    except (TypeError, ValueError) as error:
        raise ValueError(f"save_encoder: the configuration does not fit into JSON ({error}).") from None


def _swap_in(partial: Path, folder: Path) -> None:
    old = folder.with_name(f".{folder.name}.old")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        os.replace(folder, old)
    os.replace(partial, folder)
    shutil.rmtree(old, ignore_errors=True)

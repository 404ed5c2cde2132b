"""What `jepa inspect` finds out about a source, before anything is printed."""

from __future__ import annotations

import dataclasses
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchjepa.hub.reading import TensorFile

# Name, shape and dtype.
_Tensors = list[tuple[str, tuple[int, ...], str]]
_NUMBER = re.compile(r"\.(\d+)\.")


@dataclasses.dataclass(frozen=True)
class Listed:
    """Tensors that differ in one block number only, or a single one.

    Args:
        name: without the prefixes of its part; `blocks.{0-31}.norm1.weight` stands for all blocks.
        number: how many they are.
        shape: of each.
        dtype: of each, `float32` say.
    """

    name: str
    number: int
    shape: tuple[int, ...]
    dtype: str


@dataclasses.dataclass(frozen=True)
class Part:
    """One network of a file, or what a training kept beside the networks.

    Args:
        name: `target_encoder`, `predictor`, `opt`, ...
        num_tensors: its tensors.
        num_values: numbers in them; of a network its parameters and buffers.
        num_bytes: their size.
        dtypes: how many tensors have each dtype.
        tensors: all of them, those of alike blocks together.
        network: architecture and arguments that `torchjepa.load` builds, `None` where it does not.
        refusal: why it does not, `None` where it does or was not asked.
        dropped: one line for each tensor that the network computes itself or never reads.
        reshaped: one line for each tensor of ours that the file keeps in another shape or in pieces.
    """

    name: str
    num_tensors: int
    num_values: int
    num_bytes: int
    dtypes: Mapping[str, int]
    tensors: tuple[Listed, ...]
    network: Mapping[str, Any] | None = None
    refusal: str | None = None
    dropped: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Inspection:
    """All that is known of a source.

    Args:
        source: what was asked for.
        kind: `file`, `folder`, `encoder folder`, `run` or `unfinished run`.
        path: the file or folder that holds the tensors.
        format: `pickle` or `safetensors`.
        disk_bytes: size of the files of tensors.
        family: name of the family, `torchjepa` for what was trained here, `None` where it is unknown.
        title: what people call it.
        parts: the networks, then the rest.
        other: what is not a tensor.
        notes: what was inferred.
    """

    source: str
    kind: str
    path: str
    format: str
    disk_bytes: int
    family: str | None
    title: str | None
    parts: tuple[Part, ...]
    other: Mapping[str, Any]
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Plain values; what JSON does not have becomes text."""
        return _plain(dataclasses.asdict(self))


def inspect(source: str, *, num_heads: int | None = None, check: bool = True) -> Inspection:
    """Look into a checkpoint, and try to load each of its networks.

    Args:
        source: what `torchjepa.load` takes; also a run that is not finished.
        num_heads: attention heads, where they cannot be known.
        check: whether to try; it reads the whole file.

    Raises:
        ValueError: there is no such file, or it is refused.
    """
    from torchjepa.hub.reading import open_tensors
    from torchjepa.hub.sources import is_own_folder

    path, kind = _locate(source)
    own = is_own_folder(path)
    if own:
        kind = "encoder folder" if kind == "folder" else kind
        family, title, files = _own_family(path)
        networks, rest = {name: _tensors(file, file.names) for name, file in files.items()}, {}
    else:
        files = {"": open_tensors(path)}
        family, title = _family(files[""])
        networks, rest = _by_network(files[""])
    loads = check and kind != "unfinished run"
    tried = {name: _try(path, name, num_heads) if loads else _Tried() for name in networks}
    parts = [_part(name, tensors, tried[name]) for name, tensors in networks.items()]
    parts += [_part(name, tensors, _Tried()) for name, tensors in rest.items()]
    return Inspection(
        source,
        kind,
        str(path),
        next(iter(files.values())).format,
        sum(place.stat().st_size for file in files.values() for place in file.files),
        family,
        title,
        tuple(parts),
        {name: value for file in files.values() for name, value in file.other.items()},
        tuple(dict.fromkeys(note for attempt in tried.values() for note in attempt.notes)),
    )


def _locate(source: str) -> tuple[Path, str]:
    from torchjepa.engine import list_checkpoints
    from torchjepa.hub.sources import locate

    folder = Path(source)
    if not (folder / "run.json").is_file():
        path = locate(source)
        return path, "folder" if path.is_dir() else "file"
    if (folder / "encoder" / "config.json").is_file():
        return folder / "encoder", "run"
    checkpoints = list_checkpoints(folder / "checkpoints")
    if not checkpoints:
        raise ValueError(f"{folder} is a run without a checkpoint yet; ask again when it has trained on.")
    return checkpoints[0].path, "unfinished run"


def _family(opened: TensorFile) -> tuple[str | None, str | None]:
    from torchjepa.hub.families import identify

    family = identify(opened.shapes())
    return (family.name, family.title) if family else (None, None)


def _own_family(folder: Path) -> tuple[str, str, dict[str, TensorFile]]:
    """Family and files of a folder that `torchjepa.save` wrote; its encoder is the one that is deployed."""
    from torchjepa.hub.encoder import OWN_FAMILY, read_config
    from torchjepa.hub.reading import open_tensors

    config = read_config(folder / "config.json")
    main = "encoder" if "target_encoder" in config.get("parts", {}) else "target_encoder"
    places = {main: "model", **{name: name for name in config.get("parts", {})}}
    family = str(config.get("family", OWN_FAMILY))
    files = {name: open_tensors(folder / f"{place}.safetensors") for name, place in places.items()}
    return family, f"saved by torchjepa, {config['architecture']}", files


def _by_network(opened: TensorFile) -> tuple[dict[str, _Tensors], dict[str, _Tensors]]:
    from torchjepa.hub.naming import split_names

    names = split_names(opened.names)
    rest: dict[str, list[str]] = {}
    for name in names.training:
        rest.setdefault(name.partition(".")[0], []).append(name)
    for name in names.clashes:
        rest.setdefault("ambiguous names", []).append(name)
    networks = {part: _tensors(opened, there.values(), there) for part, there in names.parts.items()}
    return networks, {part: _tensors(opened, there) for part, there in rest.items()}


def _tensors(opened: TensorFile, names: Iterable[str], short: Mapping[str, str] | None = None) -> _Tensors:
    shown = {full: name for name, full in (short or {}).items()}
    return [
        (shown.get(name, name), opened.shape(name), str(opened.dtype(name)).removeprefix("torch."))
        for name in names
    ]


@dataclasses.dataclass(frozen=True)
class _Tried:
    """What `torchjepa.load` made of a network."""

    network: Mapping[str, Any] | None = None
    refusal: str | None = None
    notes: tuple[str, ...] = ()
    dropped: tuple[str, ...] = ()
    reshaped: tuple[str, ...] = ()


def _try(path: Path, name: str, num_heads: int | None) -> _Tried:
    from torchjepa.hub.load import load

    try:
        loaded = load(path, name, num_heads=num_heads)
    except ValueError as error:
        return _Tried(refusal=" ".join(str(error).split()).removeprefix("load: "))
    network, report = next(iter(loaded.config["parts"].values())), loaded.report
    return _Tried(dict(network), None, report.notes, report.dropped, report.reshaped)


def _part(name: str, tensors: _Tensors, tried: _Tried) -> Part:
    sizes = [(math.prod(shape), dtype) for _, shape, dtype in tensors]
    return Part(
        name,
        len(tensors),
        sum(number for number, _ in sizes),
        sum(number * _item_size(dtype) for number, dtype in sizes),
        dict(Counter(dtype for _, dtype in sizes)),
        tuple(_listed(tensors)),
        tried.network,
        tried.refusal,
        tried.dropped,
        tried.reshaped,
    )


def _item_size(dtype: str) -> int:
    import torch

    return getattr(torch, dtype).itemsize


def _listed(tensors: _Tensors) -> list[Listed]:
    """Names that differ in their first number only, and not in shape or dtype, together."""
    groups: dict[tuple[str, tuple[int, ...], str], list[str]] = {}
    for name, shape, dtype in tensors:
        groups.setdefault((_NUMBER.sub(".{}.", name, count=1), shape, dtype), []).append(name)
    return [
        Listed(_folded(pattern, names), len(names), shape, dtype)
        for (pattern, shape, dtype), names in groups.items()
    ]


def _folded(pattern: str, names: list[str]) -> str:
    if len(names) == 1:
        return names[0]
    numbers = sorted(int(found.group(1)) for name in names if (found := _NUMBER.search(name)))
    whole = numbers == list(range(numbers[0], numbers[-1] + 1))
    inner = f"{numbers[0]}-{numbers[-1]}" if whole else ",".join(map(str, numbers))
    return pattern.replace("{}", f"{{{inner}}}", 1)


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if isinstance(value, (str, int, bool)) or value is None:
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    return str(value)

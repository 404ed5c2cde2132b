"""One network of a checkpoint: its arguments from the shapes, its tensors in their places, or all that is wrong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import torchjepa.nn
from torchjepa.hub.family import Family, Network, kind_of
from torchjepa.hub.keymap import Match, Shape, match, to_ours
from torchjepa.hub.reading import TensorFile, refuse_non_finite, refuse_wrong_dtypes
from torchjepa.hub.sources import Source
from torchjepa.hub.tables import recognise_table

Heads = int | Mapping[str, int] | None


@dataclass(frozen=True)
class Built:
    """A network and what became of every tensor that the file has for it; the fields are those of `LoadReport`.

    `seen` are all tensors that the file has for the network.
    """

    network: nn.Module
    seen: tuple[str, ...]
    loaded: tuple[str, ...]
    reshaped: tuple[str, ...]
    dropped: tuple[str, ...]
    missing: tuple[str, ...]
    unexplained: tuple[str, ...]
    notes: tuple[str, ...]


def build(family: Family, part: str, names: Mapping[str, str], source: Source, num_heads: Heads) -> Built:
    """Build a network of a checkpoint and fill it, without a second copy of its tensors.

    Nothing is filled where tensors are missing or unexplained: the caller refuses the file then, with all of them.

    Args:
        family: the tables.
        part: `target_encoder`, `predictor`, ...
        names: its tensors in the file, name without prefix to full name.
        source: the file.
        num_heads: heads that the user gave.

    Raises:
        ValueError: the architecture cannot be inferred, the source contradicts itself, or values are no weights.
    """
    spec = family.networks[kind_of(part)]
    shapes = {rest: source.tensors.shape(full) for rest, full in names.items()}
    matches, unknown = match(spec.rules, shapes)
    kwargs = _infer(family, part, spec, matches, shapes)
    positions, dropped, notes = _read_table(spec, part, names, source.tensors, kwargs)
    dropped += [f"{names[name]}: {why}" for name, why in spec.unused.items() if name in names]
    kwargs |= positions
    _check_config(family, part, spec, kwargs, source)
    if spec.heads_by:
        kwargs["num_heads"] = _heads(family, part, spec, kwargs, source.config, num_heads)
    with torch.device("meta"):
        network = architecture(spec.architecture)(**kwargs)
    wanted = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    missing = [f"{part}: {name}" for found in matches for name in found.missing]
    missing += [f"{part}: {name}" for name in wanted if name not in {found.ours for found in matches}]
    known = {*spec.unused, spec.table.name if spec.table else ""}
    unknown = [name for name in unknown if name not in known]
    unknown += [name for found in matches if found.ours not in wanted for name in found.theirs]
    if not missing and not unknown:
        _assign(network, part, to_ours(matches, partial(_read, source.tensors, names), wanted), source.name)
    return Built(
        network.eval(),
        seen=tuple(names.values()),
        loaded=tuple(names[name] for found in matches for name in found.theirs),
        reshaped=tuple(_reshaped(matches, shapes, wanted)),
        dropped=tuple(dropped),
        missing=tuple(missing),
        unexplained=tuple(names[name] for name in unknown),
        notes=tuple(notes),
    )


def architecture(name: str) -> Any:
    """The class of that name: of `torchjepa.nn`, or `torch.nn.Linear`."""
    return nn.Linear if name == "Linear" else getattr(torchjepa.nn, name)


def _read(tensors: TensorFile, names: Mapping[str, str], name: str, copy: bool) -> Tensor:
    return tensors.read(names[name], copy=copy)


def _infer(
    family: Family, part: str, spec: Network, matches: list[Match], shapes: Mapping[str, Shape]
) -> dict[str, Any]:
    known = {found.ours: tuple(shapes[name] for name in found.theirs) for found in matches}
    try:
        return spec.infer(known) | dict(spec.fixed)
    except (KeyError, ValueError, IndexError, ZeroDivisionError) as error:
        raise ValueError(
            f"load: the {part} is no whole {family.title}: its size does not follow from the tensors "
            f"({type(error).__name__}: {error})."
        ) from None


def _read_table(
    spec: Network, part: str, names: Mapping[str, str], tensors: TensorFile, kwargs: Mapping[str, Any]
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Arguments that follow from the position table, what is said of its being dropped, and notes."""
    table = spec.table
    if table is None or (table.name not in names and not table.used):
        return {}, [], []
    if table.name not in names:
        note = f"{part}: there is no {table.name}; the released layout {table.layouts[0]!r} is assumed"
        return {"positions": table.layouts[0]}, [], [note]
    full = names[table.name]
    known = recognise_table(tensors.read(full, copy=True), table.layouts)
    if not table.used:
        what = "a sin-cos table" if known else "no sin-cos table"
        return {}, [f"{full}: {what}, left from an earlier version; a rotary network does not read it"], []
    if known is None:
        raise ValueError(
            f"load: {full} {tensors.shape(full)} is not the sin-cos table of any grid; torchjepa computes its "
            "positions and cannot hold learned ones."
        )
    layout, grid = known
    line = f"{full}: equals the sin-cos table {layout!r} of {grid.t} x {grid.h} x {grid.w} tokens, which is computed"
    positions: dict[str, Any] = {"positions": {"layout": layout, "trained_grid": list(grid.shape)}}
    if "patch_size" in kwargs:
        patch = kwargs["patch_size"]
        lengths = zip(grid.shape[3 - len(patch) :], patch)
        positions["image_size"] = [length * size for length, size in lengths]
    return positions, [line], []


def _check_config(
    family: Family, part: str, spec: Network, kwargs: Mapping[str, Any], source: Source
) -> None:
    """What `config.json` says must be what the tensors say, and what our networks can do."""
    if not source.config:
        return
    for key, (must, default) in family.config.items():
        if (value := source.config.get(key, default)) != must:
            raise ValueError(
                f"load: {source.name}: config.json has {key} = {value!r}; torchjepa's {spec.architecture} has {must!r} "
                "and nothing else, so that its outputs would differ."
            )
    for name, key in spec.config_sizes.items():
        if (value := source.config.get(key, kwargs[name])) != kwargs[name]:
            raise ValueError(
                f"load: {source.name}: config.json has {key} = {value!r}, but the tensors of the {part} give "
                f"{name} = {kwargs[name]}; a piece of the file is missing, or these are two models."
            )


def _heads(
    family: Family,
    part: str,
    spec: Network,
    kwargs: Mapping[str, Any],
    config: Mapping[str, Any],
    asked: Heads,
) -> int:
    kind = kind_of(part)
    if isinstance(asked, Mapping) and (part in asked or kind in asked):
        return asked[part] if part in asked else asked[kind]
    key = tuple(kwargs[name] for name in spec.heads_by)
    known = config.get(spec.config_heads, spec.heads.get(key))
    if isinstance(asked, int) and known not in (None, asked):
        raise ValueError(
            f"load: num_heads={asked}, but the {kind} of this {family.title} has {known}; leave num_heads out, or say "
            f"num_heads={{{kind!r}: {asked}}} to overrule it."
        )
    heads = asked if isinstance(asked, int) else known
    if heads is None:
        sizes = ", ".join(f"{name} {value}" for name, value in zip(spec.heads_by, key))
        raise ValueError(
            f"load: the number of heads does not follow from the tensors, and no known {family.title} has this {kind}: "
            f"{sizes}; pass num_heads=..., or num_heads={{{kind!r}: ...}} where the networks differ."
        )
    return heads


def _assign(network: nn.Module, part: str, state: Mapping[str, Tensor], source: str) -> None:
    """Give the network these tensors themselves: it holds no memory of its own before."""
    wanted = network.state_dict()
    wrong = [
        f"{name} {tuple(tensor.shape)} where the network has {tuple(wanted[name].shape)}"
        for name, tensor in state.items()
        if tensor.shape != wanted[name].shape
    ]
    if wrong:
        raise ValueError(
            f"load: {source}: {len(wrong)} tensors of the {part} do not fit the others: {'; '.join(wrong[:5])}; "
            "nothing was loaded."
        )
    refuse_wrong_dtypes(state, wanted, source)
    refuse_non_finite(state, source)
    network.load_state_dict(state, assign=True)


def _reshaped(matches: list[Match], shapes: Mapping[str, Shape], wanted: Mapping[str, Shape]) -> list[str]:
    return [
        f"{' + '.join(f'{name} {shapes[name]}' for name in found.theirs)} -> {found.ours} {wanted[found.ours]}"
        for found in matches
        if found.ours in wanted and [shapes[name] for name in found.theirs] != [wanted[found.ours]]
    ]

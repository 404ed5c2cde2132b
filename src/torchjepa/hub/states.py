"""Our networks in the layout of others: the tables of `hub/families`, read from right to left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from torchjepa.hub.families import families
from torchjepa.hub.family import Family, Network, kind_of
from torchjepa.hub.keymap import to_theirs
from torchjepa.hub.tables import make_table
from torchjepa.types import Grid


def export_state(
    parts: Mapping[str, nn.Module], family: str, *, grid: Grid | None = None
) -> dict[str, Tensor]:
    """Our networks under the names and in the shapes of a family, bit for bit.

    Position tables, which ours compute, are written out. Tensors share memory with ours where a view will do.

    Args:
        parts: networks by part, as `Pretrained.parts` has them: `{"target_encoder": ..., "predictor": ...}`.
        family: name of the layout: `ijepa`, `vjepa2`, `transformers_ijepa`, ...
        grid: the token grid of the position table; by default that of the trained positions, else that of the
            encoder's `image_size`.

    Returns:
        Tensors by full name, `target_encoder.module.blocks.0.attn.qkv.weight` say.

    Raises:
        ValueError: no such family, a network that it has no place for or whose outputs would be others there, two
            networks for one place, or no grid for a position table.
    """
    known = families()
    if family not in known:
        raise ValueError(f"export_state: no family {family!r}; there are {', '.join(sorted(known))}.")
    layout = known[family]
    grid = grid or next((found for part in parts.values() if (found := _grid(part))), None)
    state: dict[str, Tensor] = {}
    for part, network in parts.items():
        spec = _place(layout, part, network)
        prefix = _prefix(layout, spec, part, parts)
        tensors = to_theirs(spec.rules, network) | _table(spec, network, grid)
        named = {prefix + name: tensor for name, tensor in tensors.items()}
        if named.keys() & state.keys():
            raise ValueError(
                f"export_state: {layout.title} has one place for {part} and another of {', '.join(parts)}; "
                "pass one of them."
            )
        state |= named
    return state


def _place(layout: Family, part: str, network: nn.Module) -> Network:
    spec = layout.networks.get(kind_of(part))
    if spec is None or spec.architecture != type(network).__name__:
        raise ValueError(
            f"export_state: {layout.title} has no place for a {type(network).__name__} as {part}; it has "
            f"{', '.join(f'{kind} ({place.architecture})' for kind, place in layout.networks.items())}."
        )
    config: dict[str, Any] = getattr(network, "config", {})
    for name, value in spec.fixed.items():
        if config[name] != value:
            raise ValueError(
                f"export_state: the {part} has {name} = {config[name]!r}, and whoever reads {layout.title} computes "
                f"with {value!r}: its outputs would be others."
            )
    return spec


def _prefix(layout: Family, spec: Network, part: str, parts: Mapping[str, nn.Module]) -> str:
    wrapped = kind_of(part) != "classifier" and any(kind_of(name) == "classifier" for name in parts)
    group = part if spec.group is None else spec.group
    return (layout.wrapper if wrapped else "") + (f"{group}." if group else "") + spec.prefix


def _table(spec: Network, network: nn.Module, grid: Grid | None) -> dict[str, Tensor]:
    if spec.table is None or not spec.table.used:
        return {}
    positions = network.config["positions"]  # type: ignore[index]
    layout = positions.get("layout") if isinstance(positions, Mapping) else positions
    if layout not in spec.table.layouts:
        raise ValueError(
            f"export_state: positions {positions!r} have no table there; expected the layout "
            f"{' or '.join(map(repr, spec.table.layouts))}."
        )
    if grid is None:
        raise ValueError("export_state: grid must be given: neither positions nor image_size tell it.")
    like = next(network.parameters())
    return {spec.table.name: make_table(grid, network.config["embed_dim"], layout, like)}  # type: ignore[index]


def _grid(network: nn.Module) -> Grid | None:
    config: dict[str, Any] = getattr(network, "config", {})
    positions = config.get("positions")
    if isinstance(positions, Mapping) and "layout" in positions:
        return Grid(**dict(zip("thw", positions["trained_grid"])))
    size = config.get("image_size")
    return network.grid(size) if size else None  # type: ignore[operator]

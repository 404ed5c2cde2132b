"""A recipe as JSON and back: what run.json holds and `jepa train --from run.json` repeats."""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic_core import SchemaError

T = TypeVar("T")
_CLASS = "class"


def to_json(settings: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass as JSON.

    A field that is itself a dataclass carries the name of its class beside its fields; any other object (a
    user's own regularizer without fields, a function) its name alone. Infinity and NaN, which JSON does not
    have, become the strings that read back as such.

    Args:
        settings: a recipe, or a part of one.
    """
    fields = [field for field in dataclasses.fields(settings) if field.init]
    return {field.name: _value_to_json(getattr(settings, field.name)) for field in fields}


def from_json(base: T, values: Mapping[str, Any], where: str = "") -> T:
    """`base` with the fields of `values`, checked by type.

    Args:
        base: the recipe (or a part of it) as its file defines it.
        values: what `to_json` gave; any subset of the fields.
        where: path of the field, for messages.

    Raises:
        ValueError: an unknown field (the nearest is named), a value of the wrong type, or a part of
            another class than the recipe has.
    """
    assert dataclasses.is_dataclass(base)
    hints = typing.get_type_hints(type(base))
    fields = {field.name: field for field in dataclasses.fields(base) if field.init}
    changes: dict[str, Any] = {}
    for key, value in values.items():
        path = f"{where}{key}"
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"Did you mean {where}{near[0]}?" if near else f"The fields are {', '.join(fields)}."
            raise ValueError(f"There is no field {path!r}. {hint}")
        changes[key] = _restored(getattr(base, key), value, hints[key], path)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def flatten(values: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """What `to_json` gave with one key for each value: `regularizer.gamma`, `masks.0.aspect`, as the flags are called.

    Args:
        values: nested JSON objects.
        where: path of the object, put before its keys.
    """
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, list) and any(map(_is_part, value)):
            value = {str(place): part for place, part in enumerate(value)}
        flat |= flatten(value, f"{where}{key}.") if isinstance(value, Mapping) else {f"{where}{key}": value}
    return flat


def differences(settings: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    """The values of `settings` that `base` does not have, by their flat keys.

    Args:
        settings: what `to_json` gave.
        base: the same of what it is compared with.
    """
    before = flatten(base)
    return {
        key: value for key, value in flatten(settings).items() if key not in before or before[key] != value
    }


def _value_to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_CLASS: type(value).__name__, **to_json(value)}
    if isinstance(value, Mapping):
        return {str(key): _value_to_json(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_value_to_json(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return value if value is None or isinstance(value, (bool, int, float, str)) else {_CLASS: _name(value)}


def _name(part: object) -> str:
    return str(getattr(part, "__name__", type(part).__name__))


def _is_part(value: Any) -> bool:
    return isinstance(value, Mapping) and _CLASS in value


def _restored(current: Any, value: Any, hint: Any, path: str) -> Any:
    if _is_part(value):
        return _restored_part(current, value, path)
    if isinstance(value, list) and any(map(_is_part, value)):
        return _restored_parts(current, value, path)
    if value is None and (current is None or type(None) in typing.get_args(hint)):
        return None
    try:
        config = None if dataclasses.is_dataclass(hint) else ConfigDict(arbitrary_types_allowed=True)
        adapter: TypeAdapter[Any] = TypeAdapter(hint, config=config)  # type: ignore[arg-type]
        return adapter.validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{path} = {value!r}: {error.errors()[0]['msg']}.") from None
    except (TypeError, SchemaError):  # a protocol, say, that cannot be checked at run time
        raise ValueError(
            f"{path} = {value!r}: it cannot be read from a file; choose it in the recipe."
        ) from None


def _restored_part(current: Any, value: Mapping[str, Any], path: str) -> Any:
    if value[_CLASS] != _name(current):
        raise ValueError(
            f"{path} is a {value[_CLASS]} in the file but a {_name(current)} in the recipe; "
            "parts are chosen in the recipe's file, only their numbers are stored."
        )
    numbers = {key: item for key, item in value.items() if key != _CLASS}
    return from_json(current, numbers, f"{path}.") if dataclasses.is_dataclass(current) else current


def _restored_parts(current: Any, values: list[Any], path: str) -> Any:
    if not isinstance(current, Sequence) or len(current) != len(values) or not all(map(_is_part, values)):
        raise ValueError(f"{path} holds {len(values)} parts in the file, and other ones in the recipe.")
    parts = [
        _restored_part(part, value, f"{path}[{i}]") for i, (part, value) in enumerate(zip(current, values))
    ]
    return tuple(parts) if isinstance(current, tuple) else parts

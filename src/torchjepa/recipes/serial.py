"""A recipe as JSON and back: what run.json holds and `jepa train --from run.json` repeats."""

from __future__ import annotations

import dataclasses
import difflib
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

T = TypeVar("T")
_CLASS = "class"


def to_json(settings: Any) -> dict[str, Any]:
    """The fields of a frozen dataclass as JSON; fields that are dataclasses carry the name of their class."""
    return {
        field.name: _value_to_json(getattr(settings, field.name)) for field in dataclasses.fields(settings)
    }


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
            hint = f"; did you mean {where}{near[0]}?" if near else f"; the fields are {', '.join(fields)}."
            raise ValueError(f"There is no field {path!r}{hint}")
        changes[key] = _restored(getattr(base, key), value, hints[key], path)
    return dataclasses.replace(base, **changes)  # type: ignore[type-var]


def _value_to_json(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {_CLASS: type(value).__name__, **to_json(value)}
    if isinstance(value, (list, tuple)):
        return [_value_to_json(item) for item in value]
    return value


def _restored(current: Any, value: Any, hint: Any, path: str) -> Any:
    if isinstance(value, Mapping) and _CLASS in value:
        if value[_CLASS] != type(current).__name__:
            raise ValueError(
                f"{path} is a {value[_CLASS]} in the file but a {type(current).__name__} in the recipe; "
                "parts are chosen in the recipe's file, only their numbers are stored."
            )
        return from_json(current, {key: item for key, item in value.items() if key != _CLASS}, f"{path}.")
    if value is None and current is None:
        return None
    try:
        return TypeAdapter(
            hint, config=None if _is_model(hint) else ConfigDict(arbitrary_types_allowed=True)
        ).validate_python(value)
    except ValidationError as error:
        raise ValueError(f"{path} = {value!r}: {error.errors()[0]['msg']}.") from None


def _is_model(hint: Any) -> bool:
    return dataclasses.is_dataclass(hint)

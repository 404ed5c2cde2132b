import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import pytest

from torchjepa.recipes.serial import differences, flatten, from_json, to_json


@dataclass(frozen=True)
class Part:
    strength: float = 1.0
    sizes: tuple[int, ...] = (1, 2)
    doubled: float = field(init=False)

    def __post_init__(self) -> None:
        if self.strength < 0:
            raise ValueError("Part: strength must not be negative.")
        object.__setattr__(self, "doubled", 2 * self.strength)


@dataclass(frozen=True)
class OtherPart:
    strength: float = 1.0


class Plain:
    pass


class Silent(Protocol):
    def nothing(self) -> None: ...


@dataclass(frozen=True)
class Settings:
    count: int = 1
    rate: float = 0.5
    limit: float | None = None
    flag: bool = False
    where: str | None = None
    kind: Literal["a", "b"] = "a"
    sizes: tuple[int, ...] = (1,)
    part: Any = field(default_factory=Part)
    maybe: Part | None = None
    parts: tuple[Any, ...] = ()
    silent: Silent | None = None


def through(settings: Any, base: Any = None) -> Any:
    text = json.dumps(to_json(settings), allow_nan=False)
    return from_json(settings if base is None else base, json.loads(text))


def test_everything_comes_back_as_it_was() -> None:
    settings = Settings(
        3, 0.1, 2.5, True, "x", "b", (4, 5), Part(0.25, (7,)), Part(3.0), (Part(1.5), OtherPart(2.0))
    )
    base = Settings(part=Part(), maybe=Part(), parts=(Part(), OtherPart()))
    assert through(settings, base) == settings
    assert isinstance(through(settings, base).sizes, tuple)


@pytest.mark.parametrize("value", [math.inf, -math.inf])
def test_infinity_survives_in_valid_json(value: float) -> None:
    assert through(Settings(rate=value)).rate == value
    assert math.isnan(through(Settings(rate=math.nan)).rate)


def test_none_and_what_may_be_none() -> None:
    assert through(Settings(limit=None), Settings(limit=3.0)).limit is None
    assert through(Settings(maybe=None), Settings(maybe=Part())).maybe is None


def test_parts_without_fields_are_kept_by_name() -> None:
    plain = Plain()
    assert to_json(Settings(part=plain))["part"] == {"class": "Plain"}
    assert through(Settings(part=plain)).part is plain
    assert to_json(Settings(part=math.hypot))["part"] == {"class": "hypot"}
    assert through(Settings(part=math.hypot)).part is math.hypot
    assert to_json(Settings(part=Path("a/b")))["part"] == "a/b"
    assert to_json(Settings(part={"a": (1, Part())}))["part"]["a"][1]["class"] == "Part"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"cuont": 1}, "There is no field 'cuont'. Did you mean count?"),
        ({"zzz": 1}, "There is no field 'zzz'. The fields are count, rate,"),
        ({"part": {"class": "Part", "strenght": 1}}, "'part.strenght'. Did you mean part.strength?"),
        ({"part": {"class": "Part", "doubled": 1}}, "There is no field 'part.doubled'"),
        ({"part": {"class": "OtherPart"}}, "part is a OtherPart in the file but a Part in the recipe"),
        ({"maybe": {"class": "Part"}}, "maybe is a Part in the file but a NoneType in the recipe"),
        ({"parts": [{"class": "Part"}]}, "parts holds 1 parts in the file"),
        ({"count": "many"}, "count = 'many'"),
        ({"count": 1.5}, "count = 1.5"),
        ({"kind": "c"}, "kind = 'c'"),
        ({"sizes": [1, "x"]}, "sizes = "),
        ({"rate": None}, "rate = None"),
        ({"silent": 3}, "silent = 3"),
        ({"part": {"class": "Part", "strength": -1}}, "strength must not be negative"),
    ],
)
def test_what_does_not_fit_is_explained(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:
        from_json(Settings(), values)
    assert message in str(caught.value)


def test_differences_have_the_names_of_the_flags() -> None:
    base, settings = Settings(), Settings(count=2, part=Part(3.0))
    assert differences(to_json(settings), to_json(base)) == {"count": 2, "part.strength": 3.0}
    assert differences(to_json(base), to_json(base)) == {}
    assert flatten({"a": 1, "b": {"c": {"d": 2}}}) == {"a": 1, "b.c.d": 2}

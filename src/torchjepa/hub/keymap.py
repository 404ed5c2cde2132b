"""Key maps: tables of rules, each read from left to right (`to_ours`) and from right to left (`to_theirs`).

A name in a rule may hold `{i}`, the index of a block, `{j}`, the index of a tensor that is one of a stack, and `{p}`,
`weight` or `bias`. A rule says which of their tensors make one of ours, and `how`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Protocol

import torch
from torch import Tensor, nn

Shape = tuple[int, ...]
_PLACES = {"i": r"(?P<i>[0-9]{1,9})", "j": r"(?P<j>[0-9]{1,9})", "p": r"(?P<p>weight|bias)"}


class How(Protocol):
    """What a rule does to the tensors themselves."""

    def forward(self, theirs: Sequence[Tensor], shape: Shape) -> Tensor:
        """Their tensors to ours, which has this shape."""
        ...

    def back(self, ours: Tensor, theirs: Sequence[str], network: nn.Module) -> list[Tensor]:
        """Our tensor to theirs, one for each of these names."""
        ...


@dataclass(frozen=True)
class Reshape:
    """The same numbers in the same order: no copy.

    Args:
        their_shape: the shape they have it in, from our network and tensor; ours when absent.
    """

    their_shape: Callable[[nn.Module, Tensor], Shape] | None = None

    def forward(self, theirs: Sequence[Tensor], shape: Shape) -> Tensor:
        """A view of their tensor; itself where it must not change or does not fit, for the strict check to name."""
        (tensor,) = theirs
        fits = self.their_shape is not None and tensor.numel() == torch.Size(shape).numel()
        return tensor.reshape(shape) if fits else tensor

    def back(self, ours: Tensor, theirs: Sequence[str], network: nn.Module) -> list[Tensor]:
        """A view of our tensor."""
        return [ours if self.their_shape is None else ours.reshape(self.their_shape(network, ours))]


@dataclass(frozen=True)
class Join:
    """Several of their tensors, one after the other along the first axis, are one of ours."""

    def forward(self, theirs: Sequence[Tensor], shape: Shape) -> Tensor:
        """Their tensors concatenated: the one place where loading copies."""
        return theirs[0] if len(theirs) == 1 else torch.cat(list(theirs))

    def back(self, ours: Tensor, theirs: Sequence[str], network: nn.Module) -> list[Tensor]:
        """Equal pieces, each with memory of its own: files do not hold two tensors in one storage."""
        return [piece.clone() for piece in ours.chunk(len(theirs))]


SAME = Reshape()
JOIN = Join()


@dataclass(frozen=True)
class Rule:
    """One of our tensors and those of theirs that it is made of.

    Args:
        ours: our name.
        theirs: their names; one that holds `{j}` stands for as many as there are.
        how: what happens to the numbers.
    """

    ours: str
    theirs: tuple[str, ...]
    how: How = SAME


KeyMap = tuple[Rule, ...]


def same(*names: str) -> KeyMap:
    """Rules for tensors that both sides call the same."""
    return tuple(Rule(name, (name,)) for name in names)


def renamed(names: Mapping[str, str]) -> KeyMap:
    """Rules for tensors that differ in their names alone, ours to theirs."""
    return tuple(Rule(ours, (theirs,)) for ours, theirs in names.items())


def inside(ours: str, theirs: str, rules: Iterable[Rule]) -> KeyMap:
    """The same rules under a prefix of ours and one of theirs."""
    return tuple(
        Rule(ours + rule.ours, tuple(theirs + name for name in rule.theirs), rule.how) for rule in rules
    )


@dataclass(frozen=True)
class Match:
    """One of our tensors and what a file has for it, in the order of the rule.

    Args:
        ours: its name.
        theirs: the names in the file, without prefix.
        missing: names that the rule asks for besides and the file does not have.
        how: what happens to the numbers.
    """

    ours: str
    theirs: tuple[str, ...]
    missing: tuple[str, ...]
    how: How


def match(rules: KeyMap, names: Iterable[str]) -> tuple[list[Match], list[str]]:
    """Lay a table over the names of a file.

    Args:
        rules: the table.
        names: tensors of one network, without prefix.

    Returns:
        What each of our tensors is made of, and the names that no rule knows.
    """
    found: dict[tuple[str, Rule], dict[tuple[int, int], str]] = {}
    unknown = []
    for name in names:
        hit = _find(rules, name)
        if hit is None:
            unknown.append(name)
            continue
        rule, place, values = hit
        ours = _fill(rule.ours, values)
        found.setdefault((ours, rule), {})[place, int(values.get("j", 0))] = name
    return [_match(ours, rule, places) for (ours, rule), places in found.items()], unknown


def _match(ours: str, rule: Rule, places: Mapping[tuple[int, int], str]) -> Match:
    # By how many there are and not by the largest index, which a hostile file may set to anything.
    count = len({j for _, j in places})
    wanted = [(place, j) for place in range(len(rule.theirs)) for j in range(count)]
    values = _find_values(rule.ours, ours)
    missing = [
        _fill(rule.theirs[place], values | {"j": str(j)}) for place, j in wanted if (place, j) not in places
    ]
    return Match(ours, tuple(places[key] for key in wanted if key in places), tuple(missing), rule.how)


def to_ours(
    matches: Iterable[Match], read: Callable[[str, bool], Tensor], shapes: Mapping[str, Shape]
) -> dict[str, Tensor]:
    """The state of our network from their tensors.

    Args:
        matches: what `match` found.
        read: one of their tensors by its name, and whether it is only read to be copied.
        shapes: the shapes that our network wants.
    """
    return {
        found.ours: found.how.forward(
            [read(name, len(found.theirs) > 1) for name in found.theirs], shapes[found.ours]
        )
        for found in matches
        if found.ours in shapes
    }


def to_theirs(rules: KeyMap, network: nn.Module) -> dict[str, Tensor]:
    """The state of our network under their names and in their shapes, bit for bit.

    Args:
        rules: the table.
        network: ours.

    Raises:
        ValueError: a tensor of ours that the table has no rule for.
    """
    state: dict[str, Tensor] = {}
    for name, tensor in network.state_dict().items():
        rule = next((rule for rule in rules if _pattern(rule.ours).fullmatch(name)), None)
        if rule is None:
            raise ValueError(
                f"export_state: the other layout has no place for {name} of {type(network).__name__}; "
                "choose a layout of the family that the network belongs to."
            )
        values = _find_values(rule.ours, name)
        names = [
            _fill(theirs, values | {"j": str(j)}) for theirs in rule.theirs for j in _stack(theirs, tensor)
        ]
        state |= zip(names, rule.how.back(tensor, names, network))
    return state


def _stack(theirs: str, tensor: Tensor) -> range:
    return range(len(tensor) if "{j}" in theirs else 1)


def _find(rules: KeyMap, name: str) -> tuple[Rule, int, dict[str, str]] | None:
    for rule in rules:
        for place, theirs in enumerate(rule.theirs):
            hit = _pattern(theirs).fullmatch(name)
            if hit:
                return rule, place, hit.groupdict()
    return None


def _find_values(template: str, name: str) -> dict[str, str]:
    hit = _pattern(template).fullmatch(name)
    return hit.groupdict() if hit else {}


def _fill(template: str, values: Mapping[str, str]) -> str:
    return re.sub(r"\{(\w)\}", lambda place: values[place[1]], template)


@cache
def _pattern(template: str) -> re.Pattern[str]:
    pieces = re.split(r"\{(\w)\}", template)
    return re.compile(
        "".join(_PLACES[piece] if odd % 2 else re.escape(piece) for odd, piece in enumerate(pieces))
    )

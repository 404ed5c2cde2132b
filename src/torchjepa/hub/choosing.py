"""Which family a file is of, and which of its networks are meant."""

from __future__ import annotations

from torchjepa.hub.families import families, identify
from torchjepa.hub.family import Family, kind_of
from torchjepa.hub.naming import Names
from torchjepa.hub.sources import Source

_WHICH = ("target_encoder", "encoder", "predictor", "classifier")


def choose_family(source: Source, name: str | None = None) -> Family:
    """The family that the user names, or the one that the tensors fit.

    Args:
        source: the opened file.
        name: what the user says, `None` to look at the tensors.

    Raises:
        ValueError: no such family, or the tensors fit none.
    """
    known = families()
    if name is not None:
        if name not in known:
            raise ValueError(f"load: no family {name!r}; there are {', '.join(sorted(known))}.")
        return known[name]
    found = identify(source.tensors.shapes())
    if found is None:
        raise ValueError(
            f"load: {source.name} is of no family that torchjepa knows ({', '.join(sorted(known))}); its first tensors "
            f"are {', '.join(source.tensors.names[:5])}. Pass family=... if it is one of these all the same."
        )
    return found


def choose_parts(
    family: Family, names: Names, which: str, source: str
) -> tuple[dict[str, str], tuple[str, ...]]:
    """The networks to load.

    Args:
        family: says whether its files tell the two encoders apart.
        names: what the file holds.
        which: `target_encoder`, `encoder`, `predictor`, `classifier`, `classifiers.<n>` or `all`.
        source: the file's name, for the message.

    Returns:
        For each network its name to the user and in the file, the one that was asked for first; and what has to be
        said about the choice.

    Raises:
        ValueError: the file has no such network.
    """
    there = sorted(names.parts, key=_rank)
    heads = [part for part in there if kind_of(part) == "classifier"]
    first = (f"{heads[0]}, the first of {len(heads)} classifiers, was taken",) if len(heads) > 1 else ()
    if which == "all":
        taken = [part for part in there if part not in heads[1:]]
        return {_to_user(part): part for part in taken}, first
    if which in there:
        return {_to_user(which): which}, ()
    if which == "classifier" and heads:
        return {which: heads[0]}, first
    alike = [part for part in there if kind_of(part) == "encoder"]
    if kind_of(which) == "encoder" and len(alike) == 1 and not (family.tells_encoders and names.says_role):
        note = f"the file holds one encoder without saying which; taken as the {which}"
        return {which: alike[0]}, (note, family.origin) if family.origin else (note,)
    raise ValueError(
        f"load: {source} has no {which!r}; which= can be {', '.join(map(repr, [*there, 'all']))} for this file."
    )


def _to_user(part: str) -> str:
    return "classifier" if kind_of(part) == "classifier" else part


def _rank(part: str) -> tuple[int, int, str]:
    number = part.rpartition(".")[2]
    order = _WHICH.index(part) if part in _WHICH else len(_WHICH)
    return order, int(number) if number.isdigit() else 0, part

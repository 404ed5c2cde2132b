"""Reads a pickle's instructions and follows none: what it would import, and how much it would copy."""

from __future__ import annotations

import pickletools
from pathlib import Path
from typing import Any

from torchjepa.hub.contents import one_line

# Elements and characters that may be handed to constructors, which copy them. A checkpoint of 5,000 tensors hands over
# 100,000; a pickle that has one long list copied a million times is how a small file takes all memory.
_MOST_COPIED = 4_000_000
_LARGEST_GROWTH = 4  # bytes that a codec makes of a character

_ATOMS = {"NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "BINFLOAT", "LONG1"}
_STORAGE = "torch.storage UntypedStorage"  # takes any size when called; files name it and never call it
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


def imports(path: Path, pickle: bytes) -> set[str]:
    """What a pickle would import.

    Args:
        path: of the file, for the message.
        pickle: the bytes.

    Raises:
        ValueError: they are not a pickle.
    """
    found, last = set(), ["?", "?"]
    try:
        for operation, argument, _ in pickletools.genops(pickle):
            if operation.name in ("GLOBAL", "INST"):
                found.add(str(argument).replace(" ", ".", 1))
            elif operation.name == "STACK_GLOBAL":  # protocol 4: module and name were pushed before
                found.add(".".join(last))
            elif isinstance(argument, str):
                last = [last[1], argument]
    except Exception as error:  # a damaged pickle can make the reader fail in any way
        raise ValueError(
            f"{path} is damaged: its pickle ends in {one_line(error)!r}. Fetch it again."
        ) from None
    return found


def refuse_copying(path: Path, pickle: bytes) -> None:
    """Refuse a pickle that is small and makes objects that are not.

    Args:
        path: of the file, for the message.
        pickle: the bytes, whose imports are known to be harmless.

    Raises:
        ValueError: it would copy millions of elements, or has an instruction that `torch.save` does not write.
    """
    machine = _Sizes()
    try:
        for operation, argument, _ in pickletools.genops(pickle):
            machine.step(operation.name, argument)
            if machine.copied > _MOST_COPIED:
                raise ValueError("it copies its own content millions of times")
    except (LookupError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(
            f"{path} was not opened: its pickle is not one of torch.save ({one_line(error)})."
        ) from None


class _Sizes:
    """The pickle machine on sizes instead of values: an int, `[size]` where it can grow, a tuple, an import's name."""

    def __init__(self) -> None:
        self.copied = 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        if name in _ATOMS:
            self.stack.append(1)
        elif name == "GLOBAL":
            self.stack.append(argument)
        elif name in ("BINUNICODE", "SHORT_BINSTRING"):
            self.stack.append(len(argument))
        elif name in ("EMPTY_DICT", "EMPTY_LIST", "EMPTY_SET"):
            self.stack.append([0])
        elif name in ("BINPUT", "LONG_BINPUT"):
            self.memo[argument] = self.stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            self.stack.append(self.memo[argument])
        elif name in _TUPLES:
            self.stack.append(tuple(self._pop(_TUPLES[name])))
        elif name == "MARK":
            self.marks.append(self.stack)
            self.stack = []
        elif name not in ("PROTO", "STOP"):
            self._combine(name)

    def _combine(self, name: str) -> None:
        if name == "TUPLE":
            items = self._pop_to_mark()  # which puts the stack below in place
            self.stack.append(tuple(items))
        elif name in ("APPENDS", "SETITEMS"):
            items = self._pop_to_mark()
            self._grow(len(items))
        elif name in ("APPEND", "SETITEM"):
            self._grow(len(self._pop(1 if name == "APPEND" else 2)))
        elif name == "BINPERSID":
            self._pop(1)
            self.stack.append(1)
        elif name in ("REDUCE", "NEWOBJ"):
            called, arguments = self._pop(2)
            if not isinstance(called, str) or called == _STORAGE:
                raise ValueError("it calls what is not to be called")
            self.stack.append([_LARGEST_GROWTH * self._copy(arguments)])
        elif name == "BUILD":
            (state,) = self._pop(1)
            self._grow(self._copy((state,)))
        else:
            raise ValueError(f"instruction {name}")

    def _copy(self, arguments: tuple[Any, ...]) -> int:
        size = sum(_size(argument) for argument in arguments)
        self.copied += size
        return size

    def _grow(self, size: int) -> None:
        self.stack[-1][0] += size

    def _pop(self, number: int) -> list[Any]:
        if number > len(self.stack):
            raise ValueError("its stack is empty")
        cut = len(self.stack) - number
        popped, self.stack[cut:] = self.stack[cut:], []
        return popped

    def _pop_to_mark(self) -> list[Any]:
        popped, self.stack = self.stack, self.marks.pop()
        return popped


def _size(value: Any) -> int:
    if isinstance(value, list):
        return value[0]
    if isinstance(value, str):
        return 1
    return len(value) if isinstance(value, tuple) else value

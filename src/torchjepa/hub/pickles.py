"""Files of `torch.save`, read so that no code of theirs runs and nothing larger than they are is allocated.

The zip directory and the pickle's imports are checked first; `torch.load(weights_only=True, mmap=True)` then reads.
"""

from __future__ import annotations

import shlex
import struct
import threading
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from torchjepa.hub.contents import Contents, Entry, check_name, one_line
from torchjepa.hub.pickle_scan import imports, refuse_copying
from torchjepa.hub.records import MAX_TABLE, Region, data_regions, read_directory

_DEEPEST, _MOST_LEAVES = 32, 300_000
_PLAIN = {
    "collections.OrderedDict",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_tensor_v3",
    "torch._utils._rebuild_parameter",
    "torch.nn.parameter.Parameter",
    "torch.storage.UntypedStorage",
    "torch.Size",
    "torch.device",
    "_codecs.encode",
}
_NUMBERS = {"f2": "e", "f4": "f", "f8": "d", "b1": "?", "i1": "b", "i2": "h", "i4": "i", "i8": "q"}
_NUMBERS |= {"u1": "B", "u2": "H", "u4": "I", "u8": "Q"}
_LEAVES = (int, float, complex, str, bytes, bool, type(None), torch.dtype, torch.device)
_reading = threading.Lock()


class _Namespace(dict):
    """What is read in place of an `argparse.Namespace`."""

    def __setstate__(self, state: Mapping[str, Any]) -> None:
        self.update(state)


class _NumberType:
    """What is read in place of a `numpy.dtype`: those of plain numbers only."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = _NUMBERS[code], "<"

    def __setstate__(self, state: Sequence[Any]) -> None:
        self.order = ">" if state[1] == ">" else "<"


def _number(kind: _NumberType, data: bytes) -> float | int | bool:
    """What is read in place of a numpy scalar."""
    return struct.unpack(kind.order + kind.code, data)[0]


# Never the classes themselves: theirs would run their own code on the file's values.
_STAND_INS = {
    "argparse.Namespace": _Namespace,
    "numpy.dtype": _NumberType,
    "numpy.core.multiarray.scalar": _number,
    "numpy._core.multiarray.scalar": _number,
}


def read_pickle(path: Path) -> Contents:
    """The tensors of a file of `torch.save`, mapped and not read, and what else it holds.

    Args:
        path: the file.

    Raises:
        ValueError: the file is damaged, wants to import something else than tensors need, or states what it does
            not hold.
    """
    directory = read_directory(path)
    if "constants.pkl" in directory:
        raise ValueError(
            f"{path} is a TorchScript archive, a program; expected weights: torch.save(state_dict)."
        )
    if "data.pkl" not in directory:
        raise ValueError(f"{path} is a zip file but not one of torch.save: it has no data.pkl.")
    if "byteorder" in directory and directory["byteorder"].read() != b"little":
        raise ValueError(f"{path} was written on a big-endian machine; save it again on a little-endian one.")
    if directory["data.pkl"].num_bytes > MAX_TABLE:
        size = directory["data.pkl"].num_bytes
        raise ValueError(f"{path} has a pickle of {size} bytes; at most {MAX_TABLE} are read.")
    pickle = directory["data.pkl"].read()
    wanted = imports(path, pickle)
    _refuse_imports(path, wanted)
    refuse_copying(path, pickle)
    tensors, other = _flatten(path, _load(path, wanted & _STAND_INS.keys()))
    return Contents("pickle", _with_regions(path, tensors, directory), other)


def _refuse_imports(path: Path, wanted: set[str]) -> None:
    bad = sorted(name for name in wanted if not _is_plain(name))
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        named = ", ".join(one_line(name) for name in bad[:5])
        raise ValueError(
            f"{path} was not opened: it wants to import {named}{more}, which weights do not need and which may run any "
            f"code. If you trust its maker, convert it once, in a container without network: {conversion(path)}"
        )


def _is_plain(name: str) -> bool:
    if name in _PLAIN or name in _STAND_INS:
        return True
    module, _, kind = name.rpartition(".")
    return module == "torch" and (
        kind.endswith("Storage") or isinstance(getattr(torch, kind, None), torch.dtype)
    )


def conversion(path: Path) -> str:
    """The command that a user runs in a sandbox to keep the tensors and numbers of a file, and nothing else.

    Args:
        path: the file that was refused.
    """
    return _command(
        path,
        "keep = lambda v: {k: keep(x) for k, x in v.items()} if isinstance(v, dict) "
        "else [keep(x) for x in v] if isinstance(v, (list, tuple)) "
        "else keep(v.state_dict()) if isinstance(v, torch.nn.Module) "
        "else v if isinstance(v, (torch.Tensor, int, float, str)) else None; "
        "torch.save(keep(torch.load(sys.argv[1], map_location='cpu', weights_only=False)), sys.argv[2])",
    )


def conversion_of_legacy(path: Path) -> str:
    """The command that writes a file of torch before 1.6 in today's format; it runs none of the file's code.

    Args:
        path: the file that was refused.
    """
    return _command(
        path, "torch.save(torch.load(sys.argv[1], map_location='cpu', weights_only=True), sys.argv[2])"
    )


def _command(path: Path, code: str) -> str:
    out = path.with_name(f"{path.name.split('.')[0]}.plain.pt")
    return f'python -c "import sys, torch; {code}" {shlex.quote(str(path))} {shlex.quote(str(out))}'


def _load(path: Path, stand_ins: set[str]) -> Any:
    # The allow list is one for the process: a second thread must not take ours away while we read.
    with _reading, torch.serialization.safe_globals([(_STAND_INS[name], name) for name in stand_ins]):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # a pickle that lies can make torch fail in any way
            reason = one_line(error)
            if "resize storage" in reason:
                reason = "one is larger than what the file holds of it"
            raise ValueError(f"{path} is damaged or lies about its tensors: {reason}.") from None


def _flatten(path: Path, tree: Any) -> tuple[dict[str, tuple[str, Tensor]], dict[str, Any]]:
    """Tensors with their part, and the other leaves, by their dotted paths."""
    tensors: dict[str, tuple[str, Tensor]] = {}
    other: dict[str, Any] = {}
    stack: list[tuple[str, str, int, Any]] = [("", "", 0, tree)]
    visited = 0
    while stack:
        name, part, depth, value = stack.pop()
        visited += 1
        if (
            visited > _MOST_LEAVES or depth > _DEEPEST
        ):  # containers may hold one another: a small file, no end
            raise ValueError(f"{path} nests or repeats its containers without end; it was not read.")
        children = _children(path, value)
        if children is None:
            _keep(path, name, value, part, tensors, other)
            continue
        for key, child in reversed(children):
            inner = f"{name}.{key}" if name else key
            check_name(path, inner)
            stack.append((inner, _part(part, depth, inner, value, child), depth + 1, child))
    return tensors, other


def _children(path: Path, value: Any) -> list[tuple[str, Any]] | None:
    if isinstance(value, dict):
        for key in value:
            if not isinstance(key, (str, int)):
                raise ValueError(
                    f"{path} has a key of type {type(key).__name__}; expected text or whole numbers."
                )
        return [(str(key), child) for key, child in value.items()]
    if isinstance(value, (list, tuple)) and not isinstance(value, torch.Size):
        return [(str(index), child) for index, child in enumerate(value)]
    return None


def _part(part: str, depth: int, name: str, holder: Any, child: Any) -> str:
    """The top-level group: "encoder", and "classifiers.0" where the top level holds a list of them."""
    if depth == 0 and isinstance(child, (dict, list, tuple)):
        return name
    if depth == 1 and isinstance(holder, (list, tuple)) and isinstance(child, dict):
        return name
    return part


def _keep(
    path: Path, name: str, value: Any, part: str, tensors: dict[str, Any], other: dict[str, Any]
) -> None:
    if name in tensors or name in other:
        raise ValueError(f"{path} holds {name!r} twice, once as a nested key.")
    if isinstance(value, Tensor):
        _check_tensor(path, name, value)
        tensors[name] = (part, value.detach())
    elif isinstance(value, torch.Size):
        other[name] = tuple(value)
    elif isinstance(value, _LEAVES):
        other[name] = value
    else:
        raise ValueError(
            f"{path}: {name or 'its content'} is a {type(value).__name__}; expected tensors and numbers."
        )


def _check_tensor(path: Path, name: str, tensor: Tensor) -> None:
    if tensor.layout is not torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
        raise ValueError(f"{path}: {name} is not a plain tensor ({tensor.layout}, {tensor.device}).")
    stored = tensor.untyped_storage().nbytes()
    if tensor.numel() * tensor.element_size() > stored:
        raise ValueError(
            f"{path}: {name} states {tensor.numel()} values of {tensor.dtype} and the file holds {stored} bytes of it."
        )


def _with_regions(
    path: Path, tensors: Mapping[str, tuple[str, Tensor]], directory: Mapping[str, Region]
) -> dict[str, Entry]:
    """Each tensor with the record that its values lie in.

    Storages are pieces of one mapping, so sorted by address they are the records sorted by offset, one to one.
    """
    sizes = {}
    for _, tensor in tensors.values():
        storage = tensor.untyped_storage()
        if storage.nbytes():
            sizes[storage.data_ptr()] = storage.nbytes()
    regions = data_regions(directory)
    addresses = sorted(sizes)
    bases = {address - region.start for address, region in zip(addresses, regions)}
    whole = [sizes[address] for address in addresses] == [region.num_bytes for region in regions]
    if not whole or len(bases) > 1:
        raise ValueError(f"{path} is damaged: its tensors and its data records do not belong together.")
    places = dict(zip(addresses, regions))
    return {
        name: Entry(tensor, part, places.get(tensor.untyped_storage().data_ptr()))
        for name, (part, tensor) in tensors.items()
    }

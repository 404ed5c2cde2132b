"""The file is one that the format's own reader takes."""

import struct

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from torchjepa.engine.tensor_file import write_tensors

TENSORS = {
    "half": torch.randn(3).half(),
    "flags": torch.tensor([True, False, True]),
    "wide": torch.randn(2, 3, dtype=torch.float64),
    "empty": torch.zeros(0, 4),
    "scalar": torch.tensor(7),
    "brain": torch.randn(5).bfloat16(),
    "strided": torch.randn(4, 6).t()[::2],
    "gewicht_ä": torch.randn(3),
    "bytes": torch.arange(5, dtype=torch.uint8),
    "short": torch.arange(3, dtype=torch.int16),
    "int": torch.arange(3, dtype=torch.int32),
    "tiny": torch.arange(3, dtype=torch.int8),
    "shared": torch.arange(6.0)[2:4],
}


def same(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


def test_the_reader_gets_every_tensor_back(tmp_path):
    path = tmp_path / "model.safetensors"
    write_tensors(path, TENSORS, same)
    found = load_file(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    with safe_open(path, "pt") as file:
        assert file.metadata() == {"format": "pt"}
    assert struct.unpack("<Q", path.read_bytes()[:8])[0] % 8 == 0


def test_one_tensor_is_fetched_at_a_time_in_one_order_everywhere(tmp_path):
    order = {True: [], False: []}
    for writes in (True, False):
        write_tensors(
            tmp_path / "x" if writes else None, TENSORS, lambda t, w=writes: order[w].append(id(t)) or t
        )
    assert order[True] == order[False]
    assert sorted(order[True]) == sorted(map(id, TENSORS.values()))


def test_a_dtype_that_the_format_lacks_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"cannot hold 'z' of dtype torch\.complex64"):
        write_tensors(tmp_path / "x", {"z": torch.zeros(2, dtype=torch.complex64)}, same)

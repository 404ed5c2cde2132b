"""Loading a checkpoint takes the memory of its weights once."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from torchjepa.nn import sincos_positions
from torchjepa.types import Grid

# In a process of its own; the first, small file brings in what is imported on the way and is not counted.
LOAD = """
import gc, json, sys
import torchjepa

def kilobytes(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) for line in file if line.startswith(field))

used = []
for path in sys.argv[1:]:
    loaded = None
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")  # the peak counts from here
    before = kilobytes("VmRSS")
    loaded = torchjepa.load(path, num_heads={"encoder": 2})
    total = sum(float(tensor.sum()) for tensor in loaded.model.state_dict().values())  # touches every page
    peak = kilobytes("VmHWM")
    used.append({"grown": (peak - before) * 1024, "peak": peak * 1024})
print(json.dumps(used))
"""
FORMATS = (".pth.tar", ".safetensors")


def official(width: int, depth: int, fill: float = 0.01) -> dict[str, Tensor]:
    """An I-JEPA encoder in the released names: patches of 14, a grid of 2 x 2."""
    shapes: dict[str, tuple[int, ...]] = {
        "patch_embed.proj.weight": (width, 3, 14, 14),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
    }
    linears = {"attn.qkv": (3, 1), "attn.proj": (1, 1), "mlp.fc1": (4, 1), "mlp.fc2": (1, 4)}
    for block in range(depth):
        for name, (rows, columns) in linears.items():
            shapes[f"blocks.{block}.{name}.weight"] = (rows * width, columns * width)
            shapes[f"blocks.{block}.{name}.bias"] = (rows * width,)
        for name in ("norm1.weight", "norm1.bias", "norm2.weight", "norm2.bias"):
            shapes[f"blocks.{block}.{name}"] = (width,)
    tensors = {name: torch.full(shape, fill) for name, shape in shapes.items()}
    tensors["pos_embed"] = sincos_positions(Grid(h=2, w=2), width, layout="wh")[None].float()
    return tensors


def in_transformers_names(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same with queries, keys and values apart: what has to be joined, and so copied."""
    words = (
        ("patch_embed.proj", "embeddings.patch_embeddings.projection"),
        ("pos_embed", "embeddings.position_embeddings"),
        ("blocks.", "encoder.layer."),
        ("attn.proj", "attention.output.dense"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
    )
    renamed: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for ours, theirs in words:
            name = name.replace(ours, theirs)
        if "attn.qkv" not in name:
            renamed[name.replace("norm.", "layernorm.", 1) if name.startswith("norm.") else name] = tensor
            continue
        for kind, piece in zip(("query", "key", "value"), tensor.chunk(3)):
            renamed[name.replace("attn.qkv", f"attention.attention.{kind}")] = piece.clone()
    return renamed


def write(path: Path, width: int, depth: int) -> Path:
    tensors = official(width, depth)
    if path.suffix == ".safetensors":
        save_file(in_transformers_names(tensors), path)
    else:
        torch.save({"target_encoder": {f"module.{name}": value for name, value in tensors.items()}}, path)
    return path


def measured(folder: Path, width: int, depth: int) -> Iterator[tuple[dict[str, int], int]]:
    """What each format used, and its size."""
    small = [write(folder / f"small{ending}", 32, 1) for ending in FORMATS]
    large = [write(folder / f"large{ending}", width, depth) for ending in FORMATS]
    command = [sys.executable, "-c", LOAD, *map(str, small), *map(str, large)]
    outcome = subprocess.run(command, capture_output=True, text=True, check=False)
    assert outcome.returncode == 0, outcome.stderr
    for path, used in zip(large, json.loads(outcome.stdout)[len(small) :]):
        yield used, path.stat().st_size


def test_a_load_takes_the_memory_of_the_file_once(tmp_path: Path) -> None:
    for used, size in measured(tmp_path, 512, 8):  # 100 MB
        assert used["grown"] <= 1.2 * size


@pytest.mark.slow
def test_a_file_of_600_million_parameters_peaks_at_a_fifth_above_its_size(tmp_path: Path) -> None:
    for used, size in measured(tmp_path, 1280, 32):
        assert size > 4 * 600_000_000
        print(f"\n{size / 1e6:.0f} MB: the process at its peak {used['peak'] / size:.3f} of it")
        assert used["peak"] <= 1.2 * size  # the interpreter and torch included

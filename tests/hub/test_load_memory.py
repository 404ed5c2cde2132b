"""Loading a file takes no more memory than the file: it is mapped, not copied."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from tests.hub.checkpoints import write
from torchjepa.data import Preprocessing
from torchjepa.hub import export_state, save_encoder
from torchjepa.nn import RotaryPositions, ViT

# The most memory ever held while loading, above what the process had before; pages of the file count.
CODE = """
import json, sys
from torchjepa.hub import load
import torch, torchjepa.nn
def held(key):
    return next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith(key))
load(sys.argv[1], num_heads=8)  # imports and allocators
before = held("VmRSS")
loaded = load(sys.argv[2], num_heads=8)
print(json.dumps({"most": held("VmHWM") - before, "weights": sum(p.nbytes for p in loaded.model.parameters())}))
"""


def network(dim, depth):
    return ViT(
        patch_size=(2, 4, 4),
        embed_dim=dim,
        depth=depth,
        num_heads=8,
        positions=RotaryPositions(pairing="released"),
    )


def written(folder, name, vit):
    if name == "encoder":
        return save_encoder(folder / name, vit, pool="mean", preprocessing=Preprocessing(image_size=8))
    family = "transformers_vjepa2" if name == "conversion.safetensors" else "vjepa2"
    return write(folder / name, export_state({"target_encoder": vit}, family))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize(
    "name",
    [
        "weights.pt",
        "conversion.safetensors",
        pytest.param("weights.safetensors", marks=pytest.mark.slow),
        pytest.param("encoder", marks=pytest.mark.slow),
    ],
)
def test_no_second_copy(tmp_path, name):
    with torch.no_grad():
        (tmp_path / "small").mkdir()
        small, large = (
            written(tmp_path / "small", name, network(48, 1)),
            written(tmp_path, name, network(768, 4)),
        )
    text = subprocess.check_output([sys.executable, "-c", CODE, str(small), str(large)], text=True)
    figures = json.loads(text.splitlines()[-1])
    assert figures["weights"] > 100e6
    # Queries, keys and values that a file keeps apart are put together: a quarter of the weights in memory of their
    # own, read past the mapping so that no page counts twice.
    assert figures["most"] < 1.2 * figures["weights"], figures

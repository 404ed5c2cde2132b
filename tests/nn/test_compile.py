"""Every network is one graph to torch.compile, with the same outputs and gradients."""

import subprocess
import sys

import pytest

SETUP = """
import torch
from torchjepa.nn import *
from torchjepa.types import Grid
sizes = {"embed_dim": 16, "depth": 2, "num_heads": 2}
ids, grid = torch.tensor([[0, 1], [1, 2]]), Grid(t=2, h=1, w=2)
tokens, actions, states = torch.randn(2, 4, 16), torch.randn(2, 2, 7), torch.randn(2, 2, 7)
image, resized = torch.randn(2, 3, 8, 8), ResizedPositions("thw", (3, 3, 3))
"""
CHECK = """
def results(network):
    out = network(*given)
    return out, torch.autograd.grad(out.sin().sum(), list(network.parameters()), materialize_grads=True)

torch.testing.assert_close(results(torch.compile(network, backend="aot_eager", fullgraph=True)), results(network))
"""
VIT = "given = image, ids; network = ViT(patch_size=4, positions={positions}, **sizes)"
SEGMENTS = VIT.replace("image, ids", "image, ids, None, (1, 1)")
PREDICTOR = (
    "given = tokens[:, :2], ids, ids[:, None] + 1, grid, 1;"
    "network = {kind}(encoder_dim=16, positions={positions}, num_mask_tokens=2, **sizes)"
)
CASES = {
    "sin-cos vit, two masks": SEGMENTS.format(positions="'wh'"),
    "rotary vit, two masks": SEGMENTS.format(positions="'rope'"),
    "sin-cos vit": VIT.format(positions="'wh'"),
    "rotary vit": VIT.format(positions="'rope'"),
    "sin-cos predictor": PREDICTOR.format(kind="Predictor", positions="'thw'"),
    "resized predictor": PREDICTOR.format(kind="Predictor", positions="resized"),
    "rotary predictor": PREDICTOR.format(kind="Predictor", positions="'rope'"),
    "rotary shared context": PREDICTOR.format(kind="SharedContextPredictor", positions="'rope'"),
    "action predictor": "given = tokens, actions, states, grid; network = ActionPredictor(encoder_dim=16, **sizes)",
    "attentive probe": "given = tokens,; network = AttentiveClassifier(num_classes=3, **sizes)",
}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_compiles_to_one_graph(case):
    # In a process of its own: the shape checks of the test run do not compile.
    subprocess.run([sys.executable, "-c", SETUP + CASES[case] + CHECK], check=True)

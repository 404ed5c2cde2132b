"""torch.export programs, loaded by torch alone."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from tests.hub.small import action_source, image_source, video_source
from torchjepa.data import Preprocessing
from torchjepa.hub.export import export
from torchjepa.types import Grid


@torch.no_grad()
@pytest.mark.parametrize("precision", ["full", "half"])
def test_an_encoder_runs_for_any_batch(tmp_path, precision):
    source = image_source()
    done = export(source, tmp_path / "e.pt2", format="torch-export", dynamic=True, precision=precision)
    kept = {"preprocessing.json": "", "pool": ""}
    program = torch.export.load(done.path, extra_files=kept).module()
    for batch in (1, 4):
        x = torch.randn(batch, 3, 16, 16)
        tokens, features = program(x)
        wanted = source.model(x)
        tolerance = {"full": 1e-5, "half": 1e-2}[precision]
        torch.testing.assert_close(tokens, wanted, atol=tolerance, rtol=0)
        torch.testing.assert_close(features, wanted.mean(1), atol=tolerance, rtol=0)
    assert Preprocessing(**json.loads(kept["preprocessing.json"])) == source.preprocessing
    assert source.model.patch_embed.weight.dtype == torch.float32


@torch.no_grad()
def test_a_video_encoder_runs(tmp_path):
    source = video_source()
    done = export(source, tmp_path / "v.pt2", format="torch-export")
    assert done.signature == "pixels [1, 3, 4, 16, 16] -> tokens [1, 32, 24], features [1, 24]"
    x = torch.randn(1, 3, 4, 16, 16)
    tokens, _ = torch.export.load(done.path).module()(x)
    torch.testing.assert_close(tokens, source.model(x), atol=1e-5, rtol=0)


@torch.no_grad()
def test_a_rollout_equals_a_loop(tmp_path):
    source = action_source()
    done = export(source, tmp_path / "r.pt2", format="torch-export", part="rollout", num_steps=3)
    tokens, actions, states = torch.randn(1, 16, 24), torch.randn(1, 3, 3), torch.randn(1, 3, 2)
    found = torch.export.load(done.path).module()(tokens, actions, states)
    frames = tokens
    for step in (1, 2, 3):
        out = source.parts["predictor"](frames, actions[:, :step], states[:, :step], Grid(t=step, h=4, w=4))
        frames = torch.cat([frames, F.layer_norm(out[:, -16:], (24,))], dim=1)
    torch.testing.assert_close(found, frames[:, 16:], atol=1e-5, rtol=0)


def test_networks_that_cannot_be_traced_are_refused_in_one_line(tmp_path):
    source = image_source()

    class Branching(torch.nn.Module):
        def forward(self, x):
            return x.flatten(2) if x.sum() > 0 else x.flatten(2) + 1

    with pytest.raises(ValueError, match="encoder cannot be traced") as caught:
        export(replace(source, model=Branching()), tmp_path / "x.pt2", format="torch-export")
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())

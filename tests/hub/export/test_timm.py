"""timm folders: by timm itself where it is installed, and in any case the layout that timm documents."""

import importlib.util
import json

import pytest
import torch
from safetensors.torch import load_file

from tests.hub.small import image_source, video_source
from torchjepa.hub.export import Job, export, formats
from torchjepa.hub.parts import make_part
from torchjepa.nn import sincos_positions
from torchjepa.types import Grid

HAS_TIMM = importlib.util.find_spec("timm") is not None


def test_the_folder_has_timms_names_and_shapes(tmp_path):
    source = image_source()
    formats()["timm"].write(Job(source, make_part(source, "encoder")), tmp_path / "t")
    weights = load_file(tmp_path / "t" / "model.safetensors")
    block = [
        f"{layer}.{kind}"
        for layer in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    names = {f"blocks.{i}.{name}" for i in range(2) for name in block}
    names |= {"pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias", "norm.weight", "norm.bias"}
    assert weights.keys() == names
    assert weights["patch_embed.proj.weight"].shape == (24, 3, 4, 4)
    x = torch.randn(1, 3, 16, 16)
    patches = torch.nn.functional.conv2d(
        x, weights["patch_embed.proj.weight"], weights["patch_embed.proj.bias"], stride=4
    )
    wanted = source.model.patch_embed(
        x.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)
    )
    torch.testing.assert_close(patches.flatten(2).transpose(1, 2), wanted, atol=1e-5, rtol=0)
    table = sincos_positions(Grid(h=4, w=4), 24).float()
    torch.testing.assert_close(weights["pos_embed"][0], table, atol=1e-6, rtol=0)
    config = json.loads((tmp_path / "t" / "config.json").read_text())
    assert config["model_args"] == {
        "img_size": [16, 16],
        "patch_size": [4, 4],
        "in_chans": 3,
        "embed_dim": 24,
        "depth": 2,
        "num_heads": 2,
        "mlp_ratio": 4.0,
    }
    assert config["pretrained_cfg"]["mean"] == list(source.preprocessing.mean)


@pytest.mark.skipif(HAS_TIMM, reason="timm is installed")
def test_without_timm_nothing_is_written(tmp_path):
    with pytest.raises(ModuleNotFoundError, match="pip install timm"):
        export(image_source(), tmp_path / "t", format="timm")
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not HAS_TIMM, reason="timm is not installed")
def test_timm_gives_the_same_tokens(tmp_path):
    done = export(image_source(), tmp_path / "t", format="timm")
    assert done.deviations.keys() == {"tokens", "features"}
    assert max(done.deviations.values()) < 1e-5


def test_videos_are_refused(tmp_path):
    source = video_source()
    with pytest.raises(ValueError, match="positions"):
        formats()["timm"].write(Job(source, make_part(source, "encoder")), tmp_path / "t")

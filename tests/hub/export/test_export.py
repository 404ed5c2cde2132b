"""What holds for every format: found by being there, refused in one line, kept only when the consumer agrees."""

from dataclasses import replace

import pytest
import torch

from tests.hub.small import action_source, image_source, video_source
from torchjepa.data import Preprocessing
from torchjepa.hub.export import TOLERANCES, export, formats
from torchjepa.hub.parts import input_shape, make_part
from torchjepa.nn import ConvEncoder, ViT


def test_formats_are_found():
    assert list(formats()) == ["onnx", "safetensors", "timm", "torch-export", "transformers"]


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"format": "onxx"}, "no format 'onxx'; the formats are onnx"),
        ({"format": "onnx", "part": "decoder"}, "does not hold 'decoder': choose among encoder"),
        ({"format": "torch-export", "precision": "int8"}, "cannot be traced; use --half"),
        ({"format": "safetensors", "precision": "int8"}, "use --half, or --format onnx"),
        ({"format": "transformers", "part": "rollout"}, "no action-conditioned predictor"),
        ({"format": "timm", "part": "predictor"}, "timm has no predictors"),
        ({"format": "safetensors", "dynamic": True}, "fixes no batch size"),
        ({"format": "safetensors", "part": "rollout"}, "a rollout needs an action-conditioned predictor"),
    ],
)
def test_what_a_format_cannot_hold_is_refused(tmp_path, asked, message):
    with pytest.raises(ValueError, match=message) as caught:
        export(image_source(), tmp_path / "x", **asked)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_parts_that_are_not_there_are_refused(tmp_path):
    for source, part, message in (
        (replace(image_source(), parts={}), "predictor", "holds no predictor; it has the encoder alone"),
        (action_source(), "predictor", "export --part rollout"),
        (video_source(), "rollout", "this source has a Predictor"),
    ):
        with pytest.raises(ValueError, match=message):
            export(source, tmp_path / "x", format="safetensors", part=part)
    with pytest.raises(ValueError, match="num_steps must be at least 1, got 0"):
        make_part(action_source(), "rollout", num_steps=0)


def test_a_file_that_deviates_is_not_kept(tmp_path, monkeypatch):
    old = export(image_source(), tmp_path / "e", format="safetensors").path
    before = (old / "model.safetensors").read_bytes()
    monkeypatch.setitem(TOLERANCES, "half", 1e-9)
    with pytest.raises(ValueError, match=r"differ by .* and 1e-09 is allowed; nothing was kept"):
        export(image_source(), old, format="safetensors", precision="half")
    assert (old / "model.safetensors").read_bytes() == before
    assert list(tmp_path.iterdir()) == [old]


@pytest.mark.parametrize("wrong", [float("nan"), 1.0])
def test_a_consumer_that_computes_something_else_is_caught(tmp_path, monkeypatch, wrong):
    def read(job, path):
        return lambda inputs: {name: value + wrong for name, value in job.part(inputs).items()}

    monkeypatch.setitem(formats(), "safetensors", replace(formats()["safetensors"], read=read))
    with pytest.raises(ValueError, match="nothing was kept"):
        export(image_source(), tmp_path / "e", format="safetensors")
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_replaced(tmp_path):
    export(image_source(), tmp_path / "e", format="safetensors", part="predictor")
    export(image_source(), tmp_path / "e", format="safetensors")
    assert not (tmp_path / "e" / "predictor.safetensors").exists()


def test_the_source_may_be_in_another_dtype():
    source = image_source()
    part = make_part(replace(source, model=source.model.bfloat16()), "encoder")
    assert part(part.inputs)["tokens"].dtype == torch.float32
    assert source.model.patch_embed.weight.dtype == torch.bfloat16


def test_input_shapes_follow_from_what_is_said():
    video, image = video_source(), image_source()
    assert input_shape(image.model, Preprocessing(image_size=32)) == (3, 32, 32)
    assert input_shape(image.model, None) == (3, 16, 16)
    assert input_shape(video.model, video.preprocessing) == (3, 4, 16, 16)
    assert input_shape(
        ConvEncoder(in_channels=1), Preprocessing(image_size=8, num_channels=1, mean=[0], std=[1])
    )
    waves = ViT(patch_size=(4,), image_size=(32,), in_channels=2, embed_dim=8, depth=1, num_heads=1)
    assert input_shape(waves, None) == (2, 32)
    with pytest.raises(ValueError, match="does not say which inputs"):
        input_shape(video.model, Preprocessing(image_size=32))

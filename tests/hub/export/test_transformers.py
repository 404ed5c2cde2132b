"""transformers folders: models, the video predictor and the processor, opened by transformers in the test itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoConfig, AutoModel
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

import torchjepa
from tests.hub.small import image_source, video_source
from torchjepa.data import Preprocessing
from torchjepa.hub import LoadedEncoder
from torchjepa.hub.export import export
from torchjepa.nn import ConvEncoder, Predictor, ViT


@torch.no_grad()
@pytest.mark.parametrize("precision", ["full", "half"])
def test_an_image_encoder_gives_the_same_tokens(tmp_path, precision):
    source = image_source()
    done = export(source, tmp_path / "t", format="transformers", precision=precision)
    model = AutoModel.from_pretrained(done.path, dtype=torch.float32).eval()
    assert type(model).__name__ == "IJepaModel"
    x = torch.randn(2, 3, 16, 16)
    tolerance = {"full": 1e-5, "half": 5e-3}[precision]
    torch.testing.assert_close(model(x).last_hidden_state, source.model(x), atol=tolerance, rtol=0)
    assert AutoConfig.from_pretrained(done.path).layer_norm_eps == 1e-6


@torch.no_grad()
def test_inputs_and_patches_need_not_be_square(tmp_path):
    encoder = ViT(patch_size=(4, 2), image_size=(8, 12), embed_dim=24, depth=1, num_heads=2).eval()
    done = export(
        replace(image_source(), model=encoder, preprocessing=None), tmp_path / "t", format="transformers"
    )
    x = torch.randn(1, 3, 8, 12)
    found = AutoModel.from_pretrained(done.path).eval()(x).last_hidden_state
    torch.testing.assert_close(found, encoder(x), atol=1e-5, rtol=0)
    assert not (done.path / "preprocessor_config.json").exists()


@torch.no_grad()
def test_a_video_model_holds_encoder_and_predictor(tmp_path):
    source = video_source()
    done = export(source, tmp_path / "t", format="transformers")
    model = AutoModel.from_pretrained(done.path).eval()
    clips = torch.randn(2, 3, 4, 16, 16)
    seen, asked = torch.arange(0, 20)[None].repeat(2, 1), torch.arange(20, 32)[None].repeat(2, 1)
    found = model(clips.transpose(1, 2), context_mask=[seen], target_mask=[asked])
    tokens = source.model(clips)
    torch.testing.assert_close(found.last_hidden_state, tokens, atol=1e-5, rtol=0)
    predict = source.parts["predictor"]
    wanted = predict(tokens[:, :20], seen, asked[:, None], source.model.grid((4, 16, 16)), mask_index=1)
    torch.testing.assert_close(found.predictor_output.last_hidden_state, wanted[:, 0], atol=1e-5, rtol=0)


def test_the_processor_does_what_the_preprocessing_does(tmp_path):
    preprocessing = Preprocessing(image_size=16, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))
    done = export(replace(image_source(), preprocessing=preprocessing), tmp_path / "t", format="transformers")
    processor = CLIPImageProcessorPil.from_pretrained(done.path)
    # Smooth, so that resizing before or after the crop differ by rounding alone.
    rows, columns = np.mgrid[0:32, 0:48]
    image = np.stack([rows * 4, columns * 4, (rows + columns) * 2], axis=-1).astype(np.uint8)
    found = torch.as_tensor(np.asarray(processor(Image.fromarray(image))["pixel_values"][0]))
    levels = (found - preprocessing(image)) * torch.tensor(preprocessing.std)[:, None, None] * 255
    assert levels.abs().max() < 3


def test_what_comes_back_is_the_same_network(tmp_path):
    source = video_source()
    done = export(source, tmp_path / "t", format="transformers")
    again = torchjepa.load(done.path, "all")
    for name, part in (("encoder", source.model), ("predictor", source.parts["predictor"])):
        found = next(found for key, found in again.parts.items() if key.endswith(name))
        state = found.state_dict()
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())
    assert again.preprocessing == replace(source.preprocessing, frame_rate=again.preprocessing.frame_rate)


def test_what_transformers_has_no_class_for_is_refused(tmp_path):
    conv = LoadedEncoder(ConvEncoder(in_channels=3).eval(), "mean", Preprocessing(image_size=16), {})
    alone = replace(video_source(), parts={})
    correct = replace(
        video_source(),
        model=ViT(patch_size=(2, 4, 4), embed_dim=24, depth=1, num_heads=2, positions="rope").eval(),
    )
    other = replace(
        video_source(), parts={"predictor": Predictor(encoder_dim=24, embed_dim=12, depth=1, num_heads=2)}
    )
    for source, message in (
        (conv, "no class for a ConvEncoder"),
        (alone, "holds the predictor"),
        (correct, "its outputs would be others"),
        (other, "its outputs would be others"),
    ):
        with pytest.raises(ValueError, match=message):
            export(source, tmp_path / "t", format="transformers")
    assert not list(tmp_path.iterdir())

"""Everything that `load` can be pointed at."""

from __future__ import annotations

import json
import shutil

import pytest
import torch

from tests.hub.checkpoints import FILES, OFFICIAL, networks, state_of, write
from torchjepa.data import Preprocessing
from torchjepa.hub import load, save_encoder

PREPROCESSING = Preprocessing(image_size=8, mean=(0.4, 0.5, 0.6))


def own_folder(path, **parts):
    return save_encoder(
        path, networks("ijepa")["target_encoder"], pool="mean_max", preprocessing=PREPROCESSING, parts=parts
    )


def test_an_encoder_folder_and_a_run_folder(tmp_path):
    run = tmp_path / "run"
    own_folder(run / "encoder")
    (run / "run.json").write_text("{}")
    for source in (run, str(run), run / "encoder"):
        loaded = load(source)
        assert (loaded.family, loaded.pool, loaded.preprocessing) == ("torchjepa", "mean_max", PREPROCESSING)
        assert list(loaded.parts) == ["target_encoder"]
        wanted = networks("ijepa")["target_encoder"]
        assert torch.equal(loaded.model.norm.bias, wanted.norm.bias)
        assert not loaded.model.training
        assert loaded.config["parts"]["target_encoder"] == {"architecture": "ViT", "kwargs": wanted.config}
        assert "the encoder that was deployed" in str(loaded.report)
    with pytest.raises(ValueError, match="has no predictor; it has target_encoder"):
        load(run, "predictor")


def test_a_run_without_an_encoder_yet(tmp_path):
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(ValueError, match="has no encoder yet"):
        load(tmp_path)


def test_parts_beside_an_encoder(tmp_path):
    predictor = networks("ijepa")["predictor"]
    folder = own_folder(tmp_path / "encoder", predictor=predictor)
    assert list(load(folder).parts) == ["target_encoder"]
    assert torch.equal(load(folder, "predictor").model.mask_token, predictor.mask_token)
    whole = load(folder, "all")
    assert list(whole.parts) == ["target_encoder", "predictor"]
    assert whole.model is whole.parts["target_encoder"]


def transformers_folder(path):
    path.mkdir(parents=True, exist_ok=True)
    write(path / "model.safetensors", state_of("transformers_vjepa2")[1])
    config = {
        "model_type": "vjepa2",
        "hidden_size": 24,
        "num_attention_heads": 2,
        "pred_num_attention_heads": 2,
    }
    config |= {"crop_size": 12, "frames_per_clip": 4}
    processor = {
        "crop_size": {"height": 16, "width": 16},
        "image_mean": [0.1, 0.2, 0.3],
        "image_std": [1, 2, 3],
    }
    (path / "config.json").write_text(json.dumps(config))
    (path / "video_preprocessor_config.json").write_text(json.dumps(processor))
    return path


def test_a_transformers_folder_and_the_file_in_it(tmp_path):
    folder = transformers_folder(tmp_path)
    for source in (folder, folder / "model.safetensors"):
        loaded = load(source, "all")
        assert loaded.preprocessing == Preprocessing(
            image_size=16, mean=(0.1, 0.2, 0.3), std=(1, 2, 3), num_frames=4, frame_rate=4.0
        )
        assert set(loaded.parts) == {"encoder", "predictor", "classifier"}
        assert "the online encoder then" in str(load(source).report)


def test_a_hub_id_is_fetched_once_and_found_without_a_network(tmp_path, monkeypatch):
    """The cache as huggingface_hub lays it out; HF_HUB_OFFLINE is set for all tests."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    repository = tmp_path / "models--someone--vjepa2-tiny"
    transformers_folder(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    loaded = load("someone/vjepa2-tiny")
    assert loaded.family == "transformers_vjepa2"
    assert loaded.report.source == "someone/vjepa2-tiny"
    with pytest.raises(ValueError, match="someone/else is no file here, and the hub does not give it"):
        load("someone/else")


def test_a_hub_repository_with_an_official_file_alone(tmp_path, monkeypatch):
    folder = tmp_path / "snapshot"
    folder.mkdir()
    shutil.copy(OFFICIAL / FILES["ijepa"], folder / "weights.pth.tar")
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *args, **kwargs: str(folder))
    assert load("someone/ijepa", num_heads=2).family == "ijepa"


@pytest.mark.parametrize("source", ["nowhere.pt", "no/such/path/at.all", "https://example.org/x.pt"])
def test_what_is_not_there(source):
    with pytest.raises(ValueError, match=r"there is no .*expected a run folder, an encoder folder"):
        load(source)


def test_a_folder_without_weights(tmp_path):
    with pytest.raises(ValueError, match="holds no weights"):
        load(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold an object, got list"):
        load(tmp_path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_keep_their_dtype(tmp_path, dtype):
    state = {name: tensor.to(dtype) for name, tensor in state_of("ijepa")[1].items()}
    loaded = load(write(tmp_path / "weights.safetensors", state), num_heads=2)
    assert {parameter.dtype for parameter in loaded.model.parameters()} == {dtype}
    assert loaded.model(torch.zeros(1, 3, 8, 12, dtype=dtype)).dtype == dtype

"""An encoder saved and loaded: bit for bit the same, or an error that says what is wrong."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torchjepa.data import Preprocessing
from torchjepa.hub import load_encoder, save_encoder
from torchjepa.nn import ConvEncoder, ConvStemViT, Predictor, ViT

PREPROCESSING = Preprocessing(image_size=16, num_channels=3, mean=(0.4, 0.5, 0.6), std=(0.1, 0.2, 0.3))


def vit() -> ViT:
    torch.manual_seed(1)
    return ViT(image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2)


def conv() -> ConvEncoder:
    torch.manual_seed(1)
    return ConvEncoder(in_channels=3, widths=(8, 16))


def conv_stem() -> ConvStemViT:
    torch.manual_seed(1)
    return ConvStemViT(image_size=16, patch_size=4, embed_dim=24, depth=2, num_heads=2, positions="none")


class Own(nn.Module):
    """An architecture that torchjepa does not have."""

    def __init__(self, width: int = 5) -> None:
        super().__init__()
        self.layer = nn.Linear(3, width)

    def forward(self, x):
        return self.layer(x.mean(dim=(2, 3)))[:, None]


def edit(path, **changes):
    values = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({key: value for key, value in values.items() if value is not None}))


@pytest.mark.parametrize("build", [vit, conv, conv_stem])
def test_what_is_loaded_gives_the_same_bits(tmp_path, build):
    encoder = build().train()
    encoder(torch.randn(8, 3, 16, 16))  # moves running statistics, where there are any
    folder = save_encoder(
        tmp_path / "encoder", encoder, pool="mean", preprocessing=PREPROCESSING, extra={"step": 7}
    )
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json",
        "model.safetensors",
        "preprocessing.json",
    ]
    torch.manual_seed(99)
    loaded = load_encoder(folder)
    x = torch.randn(4, 3, 16, 16)
    assert encoder.training
    assert not loaded.model.training
    assert type(loaded.model) is type(encoder)
    assert torch.equal(loaded.model(x), encoder.eval()(x))
    assert loaded.pool == "mean"
    assert loaded.preprocessing == PREPROCESSING
    assert loaded.config["format"] == 1
    assert loaded.config["architecture"] == type(encoder).__name__
    assert loaded.config["extra"] == {"step": 7}


def test_saving_again_replaces_and_leaves_nothing_behind(tmp_path):
    folder = tmp_path / "encoder"
    save_encoder(folder, conv(), pool="mean", preprocessing=PREPROCESSING)
    save_encoder(folder, vit(), pool="mean_max", preprocessing=PREPROCESSING)
    assert load_encoder(folder).config["architecture"] == "ViT"
    assert list(tmp_path.iterdir()) == [folder]


def test_a_save_that_fails_leaves_the_old_encoder(tmp_path, monkeypatch):
    folder = tmp_path / "encoder"
    save_encoder(folder, conv(), pool="mean", preprocessing=PREPROCESSING)

    def full(*args, **kwargs):
        raise OSError("no space left on device")

    monkeypatch.setattr("torchjepa.hub.encoder.save_file", full)
    with pytest.raises(OSError, match="no space"):
        save_encoder(folder, vit(), pool="mean", preprocessing=PREPROCESSING)
    assert load_encoder(folder).config["architecture"] == "ConvEncoder"


def test_an_architecture_of_ones_own_is_brought_along(tmp_path):
    torch.manual_seed(0)
    encoder = Own()
    folder = save_encoder(tmp_path / "own", encoder, pool="mean", preprocessing=PREPROCESSING)
    with pytest.raises(ValueError, match=r"custom architecture \(Own\).*load_encoder\(folder, model="):
        load_encoder(folder)
    x = torch.randn(2, 3, 4, 4)
    assert torch.equal(load_encoder(folder, Own()).model(x), encoder(x))
    with pytest.raises(
        ValueError, match=r"in another shape 2 .*layer.bias \(5,\) where the model has \(6,\)"
    ):
        load_encoder(folder, Own(6))


@pytest.mark.parametrize("name", ["os.system", "Linear", "Predictor", "patchify", "__doc__", 3, ["ViT"]])
def test_only_encoders_of_torchjepa_can_be_named(tmp_path, name):
    folder = save_encoder(tmp_path / "encoder", conv(), pool="mean", preprocessing=PREPROCESSING)
    edit(folder / "config.json", architecture=name)
    with pytest.raises(ValueError, match=r"torchjepa\.nn has ConvEncoder, ConvStemViT, ViT"):
        load_encoder(folder)


def test_a_part_of_torchjepa_that_is_no_encoder_is_custom(tmp_path):
    predictor = Predictor(encoder_dim=8, embed_dim=8, depth=1, num_heads=2)
    folder = save_encoder(tmp_path / "part", predictor, pool="mean", preprocessing=PREPROCESSING)
    assert json.loads((folder / "config.json").read_text())["architecture"] == "custom"


def test_tensors_are_all_there_or_nothing_is_loaded(tmp_path):
    folder = save_encoder(tmp_path / "encoder", conv(), pool="mean", preprocessing=PREPROCESSING)
    path = folder / "model.safetensors"
    weights = load_file(path)
    first = sorted(weights)[0]
    model = conv()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for change, message in (
        ({name: value for name, value in weights.items() if name != first}, f"lacks 1 .*{first}"),
        (weights | {"surplus": torch.zeros(2)}, "the model does not, 1 .*surplus"),
        (weights | {first: torch.zeros(2, 2, 2)}, r"in another shape 1 .*\(2, 2, 2\)"),
    ):
        save_file(change, path)
        with pytest.raises(ValueError, match=f"{message}.*nothing was loaded"):
            load_encoder(folder, model)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="damaged"):
        load_encoder(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessing.json"])
def test_a_missing_file_is_named(tmp_path, name):
    folder = save_encoder(tmp_path / "encoder", conv(), pool="mean", preprocessing=PREPROCESSING)
    (folder / name).unlink()
    with pytest.raises(ValueError, match=f"has no {name}"):
        load_encoder(folder)


def test_keys_are_checked(tmp_path):
    folder = save_encoder(tmp_path / "encoder", conv(), pool="mean", preprocessing=PREPROCESSING)
    config, preprocessing = folder / "config.json", folder / "preprocessing.json"
    good = config.read_text()
    for changes, message in (
        ({"format": 3}, "format 3, and this torchjepa reads 1 and 2"),
        ({"pool": None}, r"missing keys \['pool'\]"),
        ({"pools": "mean"}, r"unknown keys \['pools'\]"),
        ({"kwargs": {"width": 3}}, "ConvEncoder does not take the stored arguments"),
        ({"kwargs": [1]}, "kwargs must be an object"),
    ):
        config.write_text(good)
        edit(config, **changes)
        with pytest.raises(ValueError, match=message):
            load_encoder(folder)
    config.write_text("{torn")
    with pytest.raises(ValueError, match="is not JSON"):
        load_encoder(folder)
    config.write_text("[]")
    with pytest.raises(ValueError, match="must hold an object, got list"):
        load_encoder(folder)
    config.write_text(good)
    edit(preprocessing, sharpen=1)
    with pytest.raises(ValueError, match=r"preprocessing.json.*unknown keys \['sharpen'\]"):
        load_encoder(folder)


def test_what_was_kept_before_videos_is_read_and_what_is_kept_of_them_comes_back(tmp_path):
    folder = save_encoder(tmp_path / "encoder", vit(), pool="mean", preprocessing=PREPROCESSING)
    edit(folder / "preprocessing.json", num_frames=None, frame_rate=None)  # as older files lack them
    assert "num_frames" not in (folder / "preprocessing.json").read_text()
    assert load_encoder(folder).preprocessing == PREPROCESSING
    clips = Preprocessing(16, num_frames=64, frame_rate=4.0)
    save_encoder(folder, vit(), pool="mean", preprocessing=clips)
    assert load_encoder(folder).preprocessing == clips


def test_what_does_not_fit_into_json_is_refused(tmp_path):
    with pytest.raises(ValueError, match="does not fit into JSON"):
        save_encoder(tmp_path / "e", conv(), pool="mean", preprocessing=PREPROCESSING, extra={"x": object()})
    with pytest.raises(ValueError, match="does not fit into JSON"):
        save_encoder(
            tmp_path / "e", conv(), pool="mean", preprocessing=PREPROCESSING, extra={"x": float("nan")}
        )
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_pool_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match="no pooling 'max'"):
        save_encoder(tmp_path / "e", conv(), pool="max", preprocessing=PREPROCESSING)


def predictor() -> Predictor:
    return Predictor(encoder_dim=24, embed_dim=12, depth=1, num_heads=2)


def test_further_parts_are_kept_and_read_on_request(tmp_path):
    kept = predictor()
    folder = save_encoder(
        tmp_path / "both",
        vit(),
        pool="mean",
        preprocessing=PREPROCESSING,
        family="ijepa",
        parts={"predictor": kept},
        texts={"README.md": "a card\n"},
    )
    alone, both = load_encoder(folder), load_encoder(folder, parts=["predictor"])
    assert (alone.family, alone.parts, alone.config["format"]) == ("ijepa", {}, 2)
    stored = both.parts["predictor"].state_dict()
    assert all(torch.equal(value, stored[name]) for name, value in kept.state_dict().items())
    assert (folder / "README.md").read_text() == "a card\n"
    with pytest.raises(ValueError, match=r"has no part 'projector'; it has predictor"):
        load_encoder(folder, parts=["projector"])


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([], "parts must map names"),
        ({"predictor": 3}, "parts must map names"),
        ({"../../etc/x": {"architecture": "Predictor", "kwargs": {}}}, "not the name of a part"),
        ({"predictor": {"architecture": "Predictor"}}, r"missing keys \['kwargs'\]"),
        ({"predictor": {"architecture": "os.system", "kwargs": {}}}, r"torchjepa\.nn has"),
        (
            {"predictor": {"architecture": "Predictor", "kwargs": {"x": 1}}},
            "does not take the stored arguments",
        ),
    ],
)
def test_a_strangers_parts_run_nothing(tmp_path, parts, message):
    folder = save_encoder(
        tmp_path / "both", vit(), pool="mean", preprocessing=PREPROCESSING, parts={"predictor": predictor()}
    )
    edit(folder / "config.json", parts=parts)
    with pytest.raises(ValueError, match=message):
        load_encoder(folder, parts=["predictor"])


def test_no_import_path_is_stored(tmp_path):
    for name, encoder in (("own", vit()), ("foreign", Own())):
        folder = save_encoder(
            tmp_path / name,
            encoder,
            pool="mean",
            preprocessing=PREPROCESSING,
            parts={"predictor": predictor()},
        )
        text = (folder / "config.json").read_text()
        assert "torchjepa." not in text
        assert "tests." not in text


def test_only_networks_of_torchjepa_are_parts(tmp_path):
    for name, part in (("projector", Own()), ("model", predictor()), ("a/b", predictor())):
        with pytest.raises(ValueError, match=r"part"):
            save_encoder(tmp_path / "x", vit(), pool="mean", preprocessing=PREPROCESSING, parts={name: part})
    assert not list(tmp_path.iterdir())

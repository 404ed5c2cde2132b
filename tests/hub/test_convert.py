"""From layout to layout: every bit the same, or nothing is kept."""

import pytest
import torch
from safetensors.torch import load_file, save_file

import torchjepa
from tests.hub.small import OFFICIAL, PICTURES, image_source, video_source
from torchjepa.hub import LoadedEncoder
from torchjepa.hub.convert import convert, layouts
from torchjepa.nn import ConvEncoder

RELEASED = ["ijepa.pth.tar", "vjepa.pth.tar", "vjepa2.pt", "vjepa2_ac.pt", "vjepa2_probe.pt"]


def same(first, second):
    flat = [torch.load(path, weights_only=True) for path in (first, second)]
    for group, tensors in flat[1].items():
        theirs = flat[0][group]
        if isinstance(tensors, list):
            tensors, theirs = tensors[0], theirs[0]
        assert tensors.keys() <= theirs.keys()
        assert all(
            torch.equal(value, theirs[name]) for name, value in tensors.items() if "pos_embed" not in name
        )
    return flat


@pytest.mark.parametrize("name", RELEASED)
def test_official_to_official_has_the_same_names_and_bits(tmp_path, name):
    done = convert(f"{OFFICIAL}/{name}", tmp_path / name, num_heads=2)
    assert done.layout == name.partition(".")[0]
    assert "every bit the same" in done.notes[0]
    theirs, ours = same(f"{OFFICIAL}/{name}", tmp_path / name)
    assert ours.keys() <= theirs.keys()
    groups = {"encoder", "target_encoder", "predictor", "classifiers"}
    assert theirs.keys() & groups == ours.keys() & groups


def test_through_every_layout_and_back(tmp_path):
    first, *others = (
        tmp_path / "own",
        tmp_path / "flat.safetensors",
        tmp_path / "again",
        tmp_path / "last.pth.tar",
    )
    convert(f"{OFFICIAL}/ijepa.pth.tar", first, num_heads=2)
    for place in others:
        convert(first, place, num_heads=None if first.is_dir() else 2)
        first = place
    same(f"{OFFICIAL}/ijepa.pth.tar", others[-1])
    assert "target_encoder.module.blocks.0.attn.qkv.weight" in load_file(others[0])
    assert not list(tmp_path.glob(".*"))


def test_a_run_becomes_a_file_of_the_released_kind(tmp_path):
    folder = torchjepa.save(image_source(), tmp_path / "own")
    done = convert(folder, tmp_path / "mine.pth.tar")
    assert (done.layout, done.parts) == ("ijepa", ("target_encoder", "predictor"))
    x = torch.randn(1, 3, 16, 16)
    loaded = torchjepa.load(done.path, num_heads=2)
    assert torch.equal(loaded.model(x), image_source().model(x))


def test_transformers_holds_one_encoder_and_says_what_it_leaves(tmp_path):
    done = convert(f"{OFFICIAL}/ijepa.pth.tar", tmp_path / "t", to="transformers", num_heads=2)
    assert done.parts == ("target_encoder",)
    assert "gives tokens to" in done.notes[0]
    assert done.notes[1].endswith("encoder, predictor")
    back = convert(tmp_path / "t", tmp_path / "back.safetensors")
    assert back.layout == "ijepa"
    theirs = torchjepa.load(f"{OFFICIAL}/ijepa.pth.tar", num_heads=2).model.state_dict()
    ours = torchjepa.load(back.path, "encoder", num_heads=2).model.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in theirs.items())


def test_what_does_not_fit_is_refused(tmp_path):
    conv = LoadedEncoder(ConvEncoder(in_channels=3).eval(), "mean", PICTURES, {})
    conv = torchjepa.save(conv, tmp_path / "in" / "conv")
    video = torchjepa.save(video_source(), tmp_path / "in" / "video")
    out = tmp_path / "out"
    for source, path, to, message in (
        (conv, "x.pt", None, "no released file holds a ConvEncoder"),
        (video, "x.pt", "ijepa", "its outputs would be others|no place for|have no table"),
        (video, "x.pt", "vjepa3", f"choose among {', '.join(layouts())}"),
        (video, "x", "vjepa2", r"the layout vjepa2 is a file: \.safetensors"),
        (video, "x.pt", "torchjepa", "the layout torchjepa is a folder"),
        (tmp_path / "nothing", "x", None, "there is no"),
    ):
        with pytest.raises(ValueError, match=message):
            convert(source, out / path, to=to)
    assert not out.exists() or not list(out.iterdir())


def test_bits_that_change_on_the_way_are_caught(tmp_path, monkeypatch):
    folder = torchjepa.save(image_source(), tmp_path / "own")

    def bend(tensors, path, metadata):
        name = "predictor.module.predictor_proj.weight"
        save_file(tensors | {name: tensors[name] + 1}, path, metadata)

    monkeypatch.setattr("torchjepa.hub.convert.save_file", bend)
    with pytest.raises(
        ValueError, match=r"predictor\.proj\.weight reads back as other numbers; nothing was kept"
    ):
        convert(folder, tmp_path / "x.safetensors")
    assert list(tmp_path.iterdir()) == [folder]

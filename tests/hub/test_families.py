"""Every family's table, read both ways: ours to theirs to ours, and theirs to ours to theirs, bit for bit."""

from __future__ import annotations

import pytest
import torch

from tests.hub.checkpoints import FILES, OFFICIAL, networks, official_state, state_of, write
from torchjepa.hub import export_state, load
from torchjepa.hub.families import families, identify
from torchjepa.hub.naming import split_names
from torchjepa.nn import ActionPredictor, Predictor, ViT
from torchjepa.types import Grid

ALL = ("ijepa", "transformers_ijepa", "transformers_vjepa2", "vjepa", "vjepa2", "vjepa2_ac", "vjepa2_probe")


def shapes(state):
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        assert ours[name].dtype == tensor.dtype
        assert torch.equal(ours[name], tensor), name


def test_the_families_are_found():
    assert tuple(sorted(families())) == ALL


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize("family", ALL)
def test_ours_to_theirs_to_ours(tmp_path, family, suffix):
    parts, state = state_of(family)
    loaded = load(write(tmp_path / f"weights{suffix}", state), "all", num_heads=2)
    assert loaded.family == family
    assert loaded.parts.keys() == parts.keys()
    for name, part in parts.items():
        assert type(loaded.parts[name]) is type(part)
        same_bits(loaded.parts[name].state_dict(), part.state_dict())
        if name != "classifier" or family != "transformers_ijepa":
            assert loaded.parts[name].config == part.config | with_trained_grid(loaded.parts[name])
    assert set(loaded.report.loaded) | {line.split(":")[0] for line in loaded.report.dropped} == state.keys()


def with_trained_grid(part):
    """Positions that are a table come back as the table's, to be interpolated, and an encoder with their size."""
    positions = part.config.get("positions", {})
    kept = ("positions", "image_size") if "layout" in positions else ()
    return {name: part.config[name] for name in kept if name in part.config}


@pytest.mark.parametrize("family", FILES)
def test_theirs_to_ours_to_theirs(family):
    loaded = load(OFFICIAL / FILES[family], "all", num_heads=2)
    same_bits(export_state(loaded.parts, family), official_state(family))


@pytest.mark.parametrize("family", ["ijepa", "vjepa", "vjepa2"])
def test_one_layout_to_another_and_back(tmp_path, family):
    """Official weights through transformers' layout, where it has a place for them."""
    loaded = load(OFFICIAL / FILES[family], "encoder", num_heads=2)
    other = {"ijepa": "transformers_ijepa", "vjepa2": "transformers_vjepa2"}.get(family, family)
    path = write(tmp_path / "other.safetensors", export_state(loaded.parts, other))
    again = load(path, "encoder", num_heads=2)
    same_bits(again.model.state_dict(), loaded.model.state_dict())
    same_bits(
        export_state(again.parts, family),
        {name: tensor for name, tensor in official_state(family).items() if name.startswith("encoder.")},
    )


@pytest.mark.parametrize("family", ALL)
def test_a_family_is_told_from_names_and_shapes(family):
    state = shapes(state_of(family)[1])
    assert identify(state).name == family
    for part in split_names(state).parts.values():
        # A V-JEPA 2-AC encoder is a V-JEPA 2 encoder; a linear layer alone could be anyone's.
        alone = identify({full: state[full] for full in part.values()})
        assert alone.name == family or (family, alone.name) == ("vjepa2_ac", "vjepa2")


def test_others_are_of_no_family():
    assert identify({}) is None
    assert identify({"layer1.0.conv1.weight": (64, 64, 3, 3), "fc.weight": (10, 64)}) is None
    assert identify({"patch_embed.proj.weight": (32, 3, 8)}) is None


def test_stale_tables_do_not_make_a_vjepa2_a_vjepa():
    ten = shapes(state_of("vjepa2", tokens=10)[1])
    stale = ten | {
        "encoder.module.backbone.pos_embed": (1, 8, 24),
        "target_encoder.module.backbone.pos_embed": (1, 8, 24),
        "predictor.module.backbone.predictor_pos_embed": (1, 8, 12),
    }
    assert identify(stale).name == "vjepa2"
    giant = {"patch_embed.proj.weight": (1408, 3, 2, 16, 16), "pos_embed": (1, 2048, 1408)}
    assert identify(giant).name == "vjepa2"
    for tokens, family in ((1568, "vjepa"), (4608, "vjepa"), (2048, "vjepa2"), (8192, "vjepa2")):
        large = {"patch_embed.proj.weight": (1024, 3, 2, 16, 16), "pos_embed": (1, tokens, 1024)}
        assert identify(large).name == family


@pytest.mark.parametrize(
    ("family", "parts", "message"),
    [
        ("jepa", {}, "no family 'jepa'; there are ijepa"),
        ("ijepa", {"classifier": torch.nn.Linear(2, 2)}, "I-JEPA has no place for a Linear as classifier"),
        (
            "vjepa2",
            {"predictor": ActionPredictor(encoder_dim=8, embed_dim=12, num_heads=2)},
            "no place for a Act",
        ),
        ("vjepa2", {"encoder": networks("vjepa")["encoder"]}, "positions.*its outputs would be others"),
        ("ijepa", {"encoder": networks("vjepa")["encoder"]}, "expected the layout 'wh'"),
        ("ijepa", {"predictor": Predictor(encoder_dim=8, embed_dim=8, num_heads=2)}, "grid must be given"),
        ("transformers_ijepa", {"predictor": networks("ijepa")["predictor"]}, "no place for a Predictor"),
    ],
)
def test_what_has_no_place_is_not_written(family, parts, message):
    with pytest.raises(ValueError, match=message):
        export_state(parts, family)


def test_two_encoders_do_not_share_one_place():
    parts = networks("ijepa")
    del parts["predictor"]
    with pytest.raises(ValueError, match="one place for target_encoder and another"):
        export_state(parts, "transformers_ijepa")


def test_the_grid_of_a_table_can_be_said():
    vit = ViT(patch_size=4, embed_dim=24, depth=1, num_heads=2)
    state = export_state({"encoder": vit}, "ijepa", grid=Grid(h=2, w=5))
    assert state["encoder.module.pos_embed"].shape == (1, 10, 24)
    assert state["encoder.module.patch_embed.proj.weight"].shape == (24, 3, 4, 4)

"""Nothing in a file goes unmentioned: what is missing, left over, reshaped or dropped; and what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from torch.nn.functional import interpolate

from tests.hub.checkpoints import FILES, OFFICIAL, official_state, state_of, write
from torchjepa.hub import load
from torchjepa.nn import sincos_positions
from torchjepa.types import Grid


@pytest.fixture
def ijepa():
    return official_state("ijepa")


def encoder_of(state, prefix=""):
    start = "encoder.module."
    return {
        prefix + name.removeprefix(start): value for name, value in state.items() if name.startswith(start)
    }


def refused(tmp_path, state, message, which="target_encoder", **options):
    with pytest.raises(ValueError, match=message) as error:
        load(write(tmp_path / "weights.pt", state), which, **({"num_heads": 2} | options))
    assert "\n" not in str(error.value)


def test_the_report_accounts_for_every_tensor(ijepa):
    report = load(OFFICIAL / FILES["ijepa"], num_heads=2).report
    dropped = [line.split(":")[0] for line in report.dropped]
    assert sorted([*report.loaded, *dropped, *report.left_over]) == sorted(ijepa)
    assert dropped == ["target_encoder.module.pos_embed"]
    assert report.reshaped == ("patch_embed.proj.weight (32, 3, 8, 8) -> patch_embed.weight (32, 192)",)
    text = str(report)
    for words in ("28 loaded", "equals the sin-cos table 'wh' of 1 x 3 x 3", "predictor.module.mask_token"):
        assert words in text


@pytest.mark.parametrize(
    "prefix", ["", "module.", "backbone.module.", "module.encoder.backbone.", "encoder.encoder."]
)
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_prefixes_in_any_nesting(tmp_path, ijepa, prefix, suffix):
    path = write(tmp_path / f"weights{suffix}", encoder_of(ijepa, prefix))
    loaded = load(path, "encoder", num_heads=2)
    assert torch.equal(loaded.model.norm.weight, ijepa["encoder.module.norm.weight"])


def test_a_single_encoder_is_taken_and_said(tmp_path, ijepa):
    loaded = load(write(tmp_path / "weights.pt", encoder_of(ijepa)), num_heads=2)
    assert "holds one encoder without saying which; taken as the target_encoder" in str(loaded.report)


def test_an_encoder_that_says_it_is_online_is_no_target_encoder(tmp_path, ijepa):
    refused(
        tmp_path, encoder_of(ijepa, "encoder."), "has no 'target_encoder'; which= can be 'encoder', 'all'"
    )


@pytest.mark.parametrize("which", ["student", "classifiers.x", ""])
def test_which_must_be_a_part(tmp_path, ijepa, which):
    refused(
        tmp_path, ijepa, f"has no '{which}'; which= can be 'target_encoder', 'encoder', 'predictor'", which
    )


def test_missing_tensors_are_named(tmp_path, ijepa):
    gone = [name for name in ijepa if name.startswith("target_encoder.module.blocks.1.") and "norm" in name]
    short = {name: tensor for name, tensor in ijepa.items() if name not in gone}
    refused(tmp_path, short, r"lacks 4 tensors: target_encoder: blocks\.1\.norm1\.weight, .*norm2\.bias;")
    torch_gap = {name.replace("blocks.1.", "blocks.7."): tensor for name, tensor in ijepa.items()}
    refused(tmp_path, torch_gap, r"lacks 12 tensors: target_encoder: blocks\.1\.norm1\.weight")


def test_unexplained_tensors_are_an_error_that_names_five(tmp_path, ijepa):
    extra = {f"target_encoder.module.more.{index}": torch.zeros(1) for index in range(7)}
    message = (
        r"nothing explains, 7 tensors: .*more\.0, .*more\.1, .*more\.2, .*more\.3, .*more\.4 and 2 more;"
    )
    refused(tmp_path, ijepa | extra, message)


def test_two_names_for_one_tensor_are_an_error(tmp_path, ijepa):
    refused(
        tmp_path, ijepa | {"target_encoder.norm.bias": torch.zeros(32)}, "nothing explains, 1 .*norm.bias"
    )


def test_the_state_of_the_training_is_left_over(tmp_path, ijepa):
    more = {"opt": {"state": {0: {"exp_avg": torch.zeros(3)}}}, "epoch": 3}
    report = load(write(tmp_path / "weights.pt", ijepa | more), num_heads=2).report
    assert "opt.state.0.exp_avg" in report.left_over


def test_no_known_family(tmp_path):
    refused(
        tmp_path,
        {"conv1.weight": torch.zeros(1)},
        "of no family that torchjepa knows .*first tensors are conv1",
    )
    refused(tmp_path, {"conv1.weight": torch.zeros(1)}, "no family 'clip'; there are ijepa", family="clip")
    refused(tmp_path, {"conv1.weight": torch.zeros(1)}, "no whole I-JEPA", "encoder", family="ijepa")


def test_learned_positions_are_refused(tmp_path, ijepa):
    name = "target_encoder.module.pos_embed"
    refused(tmp_path, ijepa | {name: ijepa[name] + 0.01}, "pos_embed .*is not the sin-cos table of any grid")
    resized = interpolate(ijepa[name].transpose(1, 2), size=16, mode="linear").transpose(1, 2)
    refused(tmp_path, ijepa | {name: resized.contiguous()}, "is not the sin-cos table")


@pytest.mark.parametrize(
    "grid", [Grid(h=3, w=5), Grid(h=5, w=3), Grid(h=1, w=4), Grid(h=4, w=1), Grid(), Grid(h=16, w=16)]
)
def test_tables_of_any_grid_are_known(tmp_path, ijepa, grid):
    table = sincos_positions(grid, 32)[None].float()
    loaded = load(
        write(tmp_path / "weights.pt", ijepa | {"target_encoder.module.pos_embed": table}), num_heads=2
    )
    assert loaded.model.config["positions"] == {"layout": "wh", "trained_grid": list(grid.shape)}
    assert loaded.model.config["image_size"] == [8 * grid.h, 8 * grid.w]


@pytest.mark.parametrize("layout", ["thw", "tthw"])
@pytest.mark.parametrize(
    "grid", [Grid(t=2, h=3, w=5), Grid(t=4, h=1, w=1), Grid(t=8, h=14, w=14), Grid(h=3, w=2)]
)
def test_the_layout_of_a_video_follows_from_its_table(tmp_path, layout, grid):
    state = state_of("vjepa")[1]
    table = sincos_positions(grid, 24, layout=layout)[None].float()
    state["target_encoder.module.backbone.pos_embed"] = table
    loaded = load(write(tmp_path / "weights.pt", state), num_heads=2)
    assert loaded.model.config["positions"] == {"layout": layout, "trained_grid": list(grid.shape)}


@pytest.mark.parametrize("known", [True, False])
def test_stale_tables_of_rotary_networks_are_dropped_with_a_word(tmp_path, known):
    state = state_of("vjepa2", tokens=10)[1]
    table = sincos_positions(Grid(t=2, h=2, w=2), 24, layout="thw")[None].float()
    name = "target_encoder.module.backbone.pos_embed"
    loaded = load(write(tmp_path / "weights.pt", state | {name: table if known else table + 1}), num_heads=2)
    assert loaded.family == "vjepa2"
    assert f"{name}: {'a' if known else 'no'} sin-cos table" in str(loaded.report)


def test_a_layer_that_vjepas_probe_never_applies_is_dropped(tmp_path):
    state = official_state("vjepa2_probe")
    name = "classifiers.0.module.pooler.cross_attention_block.xattn.proj.weight"
    loaded = load(
        write(tmp_path / "weights.pt", state | {name: torch.ones(32, 32)}), "classifier", num_heads=2
    )
    assert f"{name}: V-JEPA's probe holds this layer and never applies it" in loaded.report.dropped


def test_one_of_several_probes(tmp_path):
    state = official_state("vjepa2_probe")
    second = {name.replace("classifiers.0", "classifiers.1"): tensor + 1 for name, tensor in state.items()}
    path = write(tmp_path / "weights.pt", state | second)
    first = load(path, "classifier", num_heads=2)
    assert "classifiers.0, the first of 2 classifiers, was taken" in str(first.report)
    other = load(path, "classifiers.1", num_heads=2)
    assert torch.equal(other.model.linear.bias, first.model.linear.bias + 1)
    assert list(load(path, "all", num_heads=2).parts) == ["classifier"]


def test_heads_are_asked_for(tmp_path, ijepa):
    message = "encoder: embed_dim 32, depth 2; pass num_heads=..., or num_heads={'encoder': ...}"
    refused(tmp_path, ijepa, message, num_heads=None)
    loaded = load(OFFICIAL / FILES["ijepa"], "all", num_heads={"encoder": 4, "predictor": 2})
    assert [part.config["num_heads"] for part in loaded.parts.values()] == [4, 4, 2]
    refused(tmp_path, ijepa, "num_heads must divide the dimension 32, got 5", num_heads=5)


def test_heads_of_known_models(tmp_path):
    _, state = state_of("ijepa", dim=192, depth=12, heads=3)
    path = write(tmp_path / "weights.pt", state)
    assert load(path).model.config["num_heads"] == 3
    assert load(path, "predictor").model.config["num_heads"] == 3
    refused(
        tmp_path,
        state,
        "num_heads=6, but the encoder of this I-JEPA has 3;.*num_heads={'encoder': 6}",
        num_heads=6,
    )
    assert load(path, num_heads={"encoder": 6}).model.config["num_heads"] == 6


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "blocks.1.mlp.fc1.weight",
            lambda x: x[:100],
            r"do not fit .*blocks.1.mlp.fc1.weight \(100, 32\) where",
        ),
        ("blocks.1.attn.qkv.weight", lambda x: x.T.contiguous(), r"do not fit .*qkv.weight \(32, 96\) where"),
        ("norm.bias", lambda x: x.long(), "wrong dtype.*norm.bias.*int64"),
        ("norm.bias", lambda x: x * float("nan"), "NaN or infinite values in norm.bias"),
        ("blocks.0.mlp.fc1.weight", lambda x: x.new_zeros(0, 32), "nothing was loaded"),
        ("patch_embed.proj.weight", lambda x: x[..., 0], "of no family"),
    ],
)
def test_tensors_that_are_no_weights(tmp_path, ijepa, name, change, message):
    full = f"target_encoder.module.{name}"
    refused(tmp_path, ijepa | {full: change(ijepa[full])}, message)


def test_a_hostile_index_asks_for_no_memory(tmp_path):
    state = state_of("vjepa2")[1]
    far = "predictor.module.backbone.mask_tokens.999999999"
    refused(
        tmp_path,
        state | {far: torch.zeros(1, 1, 12)},
        r"lacks 1 tensors: predictor: mask_tokens\.3",
        "predictor",
    )
    deep = "predictor.module.backbone.predictor_blocks.999999999.norm1.weight"
    refused(tmp_path, state | {deep: torch.zeros(12)}, "lacks .*predictor: blocks.1", "predictor")


def transformers_folder(tmp_path, **changes):
    _, state = state_of("transformers_ijepa")
    config = {"model_type": "ijepa", "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    config |= {"layer_norm_eps": 1e-6, "image_size": [8, 12]} | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    write(tmp_path / "model.safetensors", state)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layer_norm_eps": 1e-12}, "layer_norm_eps = 1e-12; torchjepa's ViT has 1e-06"),
        ({"hidden_act": "silu"}, "hidden_act = 'silu'"),
        (
            {"num_hidden_layers": 3},
            "num_hidden_layers = 3, but the tensors of the encoder give depth = 2",
        ),
        ({"hidden_size": 48}, "hidden_size = 48, but"),
        ({"num_attention_heads": 5}, "num_heads must divide"),
    ],
)
def test_a_configuration_that_contradicts_is_refused(tmp_path, changes, message):
    assert load(transformers_folder(tmp_path)).model.config["num_heads"] == 2
    with pytest.raises(ValueError, match=message):
        load(transformers_folder(tmp_path, **changes))

"""Folders that others load, their model cards, and what goes to the hub."""

import json
import logging
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

import torchjepa
from tests.hub.small import OFFICIAL, PICTURES, image_source, video_source
from torchjepa.evaluation import write_scores
from torchjepa.evaluation.judge import Score
from torchjepa.hub import load_encoder, push_to_hub, save, save_encoder


@pytest.fixture
def run(tmp_path):
    """A run folder with what the card reads."""
    folder = tmp_path / "runs" / "birds"
    folder.mkdir(parents=True)
    mark = {"kind": "folder", "path": "/home/me/secret", "num_samples": 7, "sha256": "ab12"}
    stored = {
        "recipe": "ijepa-tiny",
        "overrides": {"lr": 0.001, "data": "/home/me/secret", "name": "birds", "runs": "/home/me/runs"},
        "settings": {},
        "command": ["jepa", "train", "--data", "/home/me/secret"],
        "total_steps": 42,
        "seed": 3,
        "versions": {"torch": "2.13.0"},
        "data": {"train": mark, "test": mark, "classes": ["owl", "wren"]},
    }
    (folder / "run.json").write_text(json.dumps(stored))
    scores = [
        Score("knn", features, score, 60, 40)
        for features, score in (("encoder", 0.875), ("untrained", 0.5), ("pixels", 0.25), ("majority", 0.125))
    ]
    write_scores(folder / "scores.json", scores)
    return folder


def test_what_is_saved_loads_the_same(tmp_path):
    source = video_source()
    folder = torchjepa.save(source, tmp_path / "both")
    loaded = torchjepa.load(folder, "all")
    assert set(loaded.parts) == {"target_encoder", "predictor"}
    for found, kept in ((loaded.model, source.model), (loaded.parts["predictor"], source.parts["predictor"])):
        state = found.state_dict()
        assert all(torch.equal(value, state[name]) for name, value in kept.state_dict().items())
    assert loaded.preprocessing == source.preprocessing
    again = torchjepa.save(loaded, tmp_path / "again")
    for name in ("config.json", "preprocessing.json", "model.safetensors", "predictor.safetensors"):
        assert (again / name).read_bytes() == (folder / name).read_bytes()


def test_a_checkpoint_keeps_both_encoders_apart(tmp_path):
    loaded = torchjepa.load(OFFICIAL / "ijepa.pth.tar", "all", num_heads=2)
    again = torchjepa.load(save(loaded, tmp_path / "ijepa"), "all")
    assert (again.family, set(again.parts)) == ("ijepa", {"target_encoder", "encoder", "predictor"})
    for name, part in loaded.parts.items():
        state = again.parts[name].state_dict()
        assert all(torch.equal(value, state[key]) for key, value in part.state_dict().items())


def test_a_bare_network_needs_its_preprocessing(tmp_path):
    network = image_source().model
    with pytest.raises(ValueError, match=r"preprocessing must be given.*Preprocessing\(image_size"):
        save(network, tmp_path / "x")
    folder = save(network, tmp_path / "x", preprocessing=PICTURES, pool="mean_max", extra={"note": "mine"})
    loaded = load_encoder(folder)
    assert (loaded.pool, loaded.config["extra"], loaded.family) == ("mean_max", {"note": "mine"}, "torchjepa")


def test_the_card_is_filled_in_from_the_run(tmp_path, run):
    folder = save(image_source(), tmp_path / "owls", run=run)
    card = (folder / "README.md").read_text()
    assert "| knn | 87.5 | 50.0 | 25.0 | 12.5 |" in card
    assert "| linear |" not in card
    for text in (
        "ijepa-tiny",
        '{"lr": 0.001}',
        "steps: `42`",
        "seed: `3`",
        '"sha256": "ab12"',
        "classes: `2`",
    ):
        assert text in card
    for secret in ("/home/me", "birds"):
        assert secret not in card
    assert "Not stated." in card
    header = card.split("---")[1]
    assert "library_name: torchjepa" in header
    assert not any(line.startswith("license") for line in header.splitlines())


def test_the_card_says_what_is_not_known(tmp_path, run):
    assert "Not recorded" in (save(image_source(), tmp_path / "a") / "README.md").read_text()
    (run / "scores.json").unlink()
    assert "Not judged" in (save(image_source(), tmp_path / "b", run=run) / "README.md").read_text()


def test_the_card_of_a_video_run_has_a_row_for_each_task(tmp_path, run):
    rows = (
        ("knn", "encoder", 0.75, "verb"),
        ("knn", "frame", 0.5, "verb"),
        ("attentive", "encoder", 1, "noun"),
    )
    write_scores(run / "scores.json", [Score(probe, name, x, 9, 4, task) for probe, name, x, task in rows])
    card = (save(image_source(), tmp_path / "b", run=run) / "README.md").read_text()
    assert "| task | probe | encoder | frame |" in card
    assert "| verb | knn | 75.0 | 50.0 |\n| noun | attentive | 100.0 | - |" in card
    (run / "run.json").write_text("{")
    with pytest.raises(ValueError, match="is not JSON"):
        save(image_source(), tmp_path / "c", run=run)
    assert not (tmp_path / "c").exists()


@pytest.fixture
def hub(monkeypatch):
    """Stands for the Hugging Face hub and keeps what it is asked."""
    calls = SimpleNamespace(made=None, sent=None, files={})

    class Api:
        def __init__(self, token=None):
            calls.token = token

        def create_repo(self, repo_id, **options):
            calls.made = (repo_id, options)

        def upload_folder(self, *, folder_path, **options):
            calls.sent = options
            calls.files = {path.name: path.read_bytes() for path in folder_path.iterdir()}
            return SimpleNamespace(commit_url="https://hub/commit/1")

    monkeypatch.setattr("huggingface_hub.HfApi", Api)
    return calls


def test_a_model_is_pushed_with_its_card_and_private(hub, run, caplog):
    with caplog.at_level(logging.WARNING):
        assert push_to_hub(image_source(), "me/owls", run=run, token="t") == "https://hub/commit/1"
    assert hub.made == ("me/owls", {"private": True, "exist_ok": True})
    assert (hub.token, hub.sent["repo_id"]) == ("t", "me/owls")
    assert "model.safetensors" in hub.files
    assert b"# me/owls" in hub.files["README.md"]
    assert b'torchjepa.load("me/owls")' in hub.files["README.md"]
    assert "states no licence" in caplog.text


def test_a_folder_is_pushed_as_it_is(tmp_path, hub, caplog):
    folder = save(image_source(), tmp_path / "owls")
    card = folder / "README.md"
    card.write_text(card.read_text().replace("# The licence", "license: mit\n# The licence"))
    with caplog.at_level(logging.WARNING):
        push_to_hub(folder, "me/owls", private=False, revision="v1")
    assert "licence" not in caplog.text
    assert hub.made[1]["private"] is False
    assert hub.sent["revision"] == "v1"
    assert hub.sent["allow_patterns"] == [
        *("config.json", "model.safetensors", "preprocessing.json", "README.md", "*.safetensors")
    ]
    with pytest.raises(ValueError, match="pool cannot change a folder"):
        push_to_hub(folder, "me/owls", pool="mean")


def test_only_folders_of_ours_with_a_card_are_pushed(tmp_path, hub):
    source = image_source()
    bare = save_encoder(tmp_path / "bare", source.model, pool="mean", preprocessing=PICTURES)
    with pytest.raises(ValueError, match=r"has no README.md; write the folder with torchjepa\.save"):
        push_to_hub(bare, "me/owls")
    folder = save(replace(source, parts={}), tmp_path / "owls")
    (folder / "config.json").write_text("{}")
    with pytest.raises(ValueError, match="is of format None"):
        push_to_hub(folder, "me/owls")
    assert hub.made is None

"""The catalogue agrees with our networks, with itself, and with what is published."""

import re

import pytest
import torch

from torchjepa.hub.catalog import RELEASES, Release
from torchjepa.nn import Predictor, ViT

COUNTED = [release for release in RELEASES if release.architecture]


def parameters(module: torch.nn.Module) -> int:
    return sum(weight.numel() for weight in module.parameters())


@pytest.mark.parametrize("release", COUNTED, ids=lambda release: release.name)
def test_parameters_are_those_of_our_network(release: Release) -> None:
    side = release.resolution
    with torch.device("meta"):
        network = ViT(**release.architecture)
    network.grid((side, side) if release.family == "I-JEPA" else (release.frames or 16, side, side))
    assert parameters(network) == release.parameters


def test_a_published_count_is_encoder_and_predictor() -> None:
    large = next(release for release in RELEASES if release.name == "vjepa2-vitl")
    with torch.device("meta"):
        predictor = Predictor(encoder_dim=1024, num_mask_tokens=10, positions="rope")
    # facebook/vjepa2-vitl-fpc64-256, as those who use it count it.
    assert (large.parameters or 0) + parameters(predictor) == 325_971_328


def test_sizes_say_the_patch_and_the_presets_the_rest() -> None:
    depths = {"L": 24, "H": 32, "g": 40}
    for release in COUNTED:
        letter, patch = re.fullmatch(r"ViT-(\w)/(\d+)", release.size).groups()  # type: ignore[union-attr]
        assert release.architecture["depth"] == depths[letter], release.name
        assert torch.tensor(release.architecture["patch_size"]).max() == int(patch), release.name


def test_licences_are_right() -> None:
    forbidden = {release.name for release in RELEASES if not release.commercial}
    assert forbidden == {release.name for release in RELEASES if release.family in ("I-JEPA", "V-JEPA")}
    for release in RELEASES:
        for file in release.files:
            assert file.licence in {"CC-BY-NC-4.0", "MIT", "Apache-2.0"}
            assert file.licence_from


def test_entries_are_whole_and_differ() -> None:
    sources = [file.source for release in RELEASES for file in release.files]
    assert len(set(sources)) == len(sources)
    assert len({release.name for release in RELEASES}) == len(RELEASES)
    for release in RELEASES:
        assert release.architecture or "does not read" in release.note
        for file in release.files:
            assert file.layout in ("official", "transformers")
            assert file.source.startswith("https://dl.fbaipublicfiles.com/") == (file.layout == "official")
            assert file.sha256 is None or re.fullmatch("[0-9a-f]{64}", file.sha256)


def test_a_file_of_float32_is_as_large_as_its_parameters() -> None:
    for release in RELEASES:
        for file in release.files:
            if file.gigabytes is not None:  # the conversion keeps the position table too
                assert 4 * (release.parameters or 0) / 1e9 == pytest.approx(file.gigabytes, abs=0.01)

"""`jepa models`: what it lists, finds and says."""

import json

from tests.cli.conftest import Jepa
from torchjepa.hub.catalog import RELEASES


def test_all_are_listed_one_a_line(jepa: Jepa) -> None:
    done = jepa("models")
    lines = done.out.splitlines()
    assert done.code == 0
    assert [line.split()[0] for line in lines[2 : 2 + len(RELEASES)]] == [
        release.name for release in RELEASES
    ]
    assert "7 of them) forbids commercial use" in done.out
    line = next(line for line in lines if line.startswith("ijepa-vith14-in1k "))
    assert "630 M" in line
    assert "CC-BY-NC-4.0" in line
    assert "facebook/ijepa_vith14_1k" in line


def test_words_and_filters_narrow(jepa: Jepa) -> None:
    def names(*arguments: object) -> list[str]:
        return [entry["name"] for entry in json.loads(jepa("models", *arguments, "--json").out)]

    assert len(names()) == len(RELEASES)
    assert names("in22k", "ViT-g") == ["ijepa-vitg16-in22k"]
    assert names("--family", "v-jepa") == ["vjepa-vitl16", "vjepa-vith16", "vjepa-vith16-384"]
    assert names("--takes", "images") == [release.name for release in RELEASES if release.family == "I-JEPA"]
    assert not any(name.startswith(("ijepa", "vjepa-")) for name in names("--commercial"))
    assert set(names("--max-parameters", 4e8, "--family", "V-JEPA 2")) == {"vjepa2-vitl"}
    assert names("vjepa2-vitg") == ["vjepa2-vitg"]  # a name, though others contain it


def test_json_holds_what_is_known_and_null_for_the_rest(jepa: Jepa) -> None:
    (entry,) = json.loads(jepa("models", "ijepa-vitg16-in22k", "--json").out)
    assert entry["parameters"] == 1_011_092_608
    assert entry["commercial"] is False
    official, conversion = entry["files"]
    assert official["sha256"] is None
    assert official["source"].endswith("IN22K-vit.g.16-600e.pth.tar")
    assert conversion["gigabytes"] == 4.05


def test_one_model_is_told_in_full_and_says_what_is_unknown(jepa: Jepa) -> None:
    done = jepa("models", "vjepa-vitl16")
    assert "303,885,312 parameters" in done.out
    assert "no commercial use" in done.out
    assert "https://dl.fbaipublicfiles.com/jepa/vitl16/vitl16.pth.tar" in done.out
    assert "size unknown" in done.out
    assert "sha256 unknown" in done.out
    assert "does not read this family yet" in jepa("models", "vjepa2.1-vitb-384").out


def test_nothing_found_is_an_error_that_helps(jepa: Jepa) -> None:
    done = jepa("models", "vjepa2-vitx")
    assert (done.code, done.out) == (2, "")
    assert "Did you mean vjepa2-vitl?" in done.err
    assert "The families are I-JEPA" in jepa("models", "--family", "DINO").err


def test_sizes_and_families_are_found_as_people_write_them(jepa: Jepa) -> None:
    assert "vjepa2-vith" in jepa("models", "huge", "V-JEPA 2").out
    assert jepa("models", "--family", "vjepa2").out == jepa("models", "--family", "V-JEPA 2").out

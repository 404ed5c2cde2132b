"""The page: complete, self-contained, honest about what is missing."""

from __future__ import annotations

import base64
import io
import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from tests.report.material import SCORES, make_material, make_run
from torchjepa.report import ReportMaterial, load_material, write_report
from torchjepa.report.curves import draw_curves, read_metrics

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """Text, tags with attributes and ids of a page; notes tags that are not closed in order."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.text, self.ids, self.disorder = "", [], []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        self.disorder += self.open

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        self.tags.append((tag, values))
        if values.get("id"):
            self.ids.append(values["id"])
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if dict(attrs).get("id"):
            self.ids.append(dict(attrs)["id"])

    def handle_endtag(self, tag):
        if not self.open or self.open.pop() != tag:
            self.disorder.append(tag)

    def handle_data(self, data):
        if self.open and self.open[-1] not in ("style", "script"):
            self.text += data

    def all(self, name: str) -> list[dict[str, str | None]]:
        return [attrs for tag, attrs in self.tags if tag == name]


def page_of(path, material=None) -> Page:
    return Page(write_report(path, material).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def full(tmp_path_factory) -> tuple[Page, str]:
    path = make_run(tmp_path_factory.mktemp("runs") / "my-run")
    (path / "data_errors.jsonl").write_text(
        "".join(
            json.dumps({"part": part, "id": 3, "name": "a/b.jpg", "error": "cut off"}) + "\n" for part in "xy"
        )
    )
    html = write_report(path, make_material()).read_text(encoding="utf-8")
    return Page(html), html


def test_every_section_is_there_and_linked(full):
    page, _ = full
    wanted = ["scores", "curves", "doctor", "masks", "views", "patches", "neighbours", "run"]
    assert [attrs["id"] for attrs in page.all("section")] == wanted
    assert [attrs["href"] for attrs in page.all("a")] == [f"#{name}" for name in wanted]


def test_the_page_is_sound(full):
    page, html = full
    assert html.startswith("<!doctype html>")
    assert page.disorder == []
    assert len(page.ids) == len(set(page.ids))
    assert page.all("html")[0]["lang"] == "en"
    assert all(attrs.get("alt") for attrs in page.all("img"))
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in page.all("meta")
    references = re.findall(r'href="#([^"]+)"', html) + re.findall(r"url\(#([^)]+)\)", html)
    assert set(references) <= set(page.ids)


def test_nothing_is_loaded_from_anywhere(full):
    page, html = full
    assert not page.all("link") + page.all("script") + page.all("iframe")
    for _, attrs in page.tags:
        for name, value in attrs.items():
            if name in ("src", "href", "xlink:href", "action", "srcset"):
                assert str(value).startswith(("#", "data:image/png;base64,")), value
    # The one address on the page stands in its text, where the data's description says it.
    assert len(re.findall(r"https?:", html)) == len(re.findall(r"https?:", page.text)) == 2
    assert "@import" not in html
    assert "@font-face" not in html
    assert not re.search(r"url\((?!#)", html)


def test_pictures_are_pictures(full):
    page, _ = full
    for attrs in page.all("img"):
        data = base64.b64decode(str(attrs["src"]).split(",")[1])
        assert Image.open(io.BytesIO(data)).convert("RGB").size[0] >= 16
    # masks 2 x 3, views 3 x 2, patch maps 3 x 2, neighbours 2 x 4
    assert len(page.all("img")) == 6 + 6 + 6 + 8


def test_what_the_reader_wants_first_stands_first(full):
    page, _ = full
    text = " ".join(page.text.split())
    assert text.index("my-run") < text.index("kNN: 85.1 %, 31.1 points above the best baseline") < 200
    for cell in (
        "85.1",
        "54.0",
        "52.0",
        "11.0",
        "93.0",
        "+31.1",
        "+22.0",
        "vs untrained encoder",
        "vs raw pixels",
    ):
        assert cell in text
    assert "kNN: k = 12 & not 20." in text
    assert "One file of the data could not be decoded and was left out: a/b.jpg: cut off" in text
    assert "torch 2.13.0" in text
    assert '"seed": 7' in text
    assert "2,000 train, 1,000 test" in text


def test_what_comes_from_outside_is_escaped(full):
    page, html = full
    assert "<script" not in html
    assert "<script>alert('ijepa & co')</script>" in page.text


def test_curves_are_drawn_with_names_and_units(full):
    page, html = full
    titles = re.findall(r"<h3>(.*?)</h3>", html)
    assert titles == [
        "Loss",
        "Terms of the loss",
        "Effective rank",
        "Spread of the features",
        "Likeness of samples",
        "Prediction error",
        "kNN probe",
        "Learning rate",
        "Momentum of the target",
        "Spectrum",
    ]
    assert len(page.all("svg")) == 10
    for name in ("step", "weighted term", "variance", "attainable with the batch", "eigenvalue, by rank"):
        assert name in page.text
    assert not re.findall(r"#0[123]0[123]0\d", html), "a stand-in colour was left"


def test_the_page_is_drawn_again_from_the_folder_alone(tmp_path):
    path = make_run(tmp_path / "run")
    first = write_report(path, make_material()).read_bytes()
    assert write_report(path).read_bytes() == first
    assert sorted(each.name for each in path.iterdir()) == [
        "metrics.jsonl",
        "report.html",
        "report_material.npz",
        "run.json",
        "scores.json",
    ]


def test_material_is_kept_whole(tmp_path):
    path = make_run(tmp_path / "run")
    material = make_material()
    write_report(path, material)
    kept = load_material(path)
    assert kept is not None
    assert kept.notes == material.notes
    assert list(kept.spectra) == list(material.spectra)
    for group in ("masks", "patch_maps", "neighbours"):
        for name, wanted in vars(getattr(material, group)).items():
            np.testing.assert_array_equal(getattr(getattr(kept, group), name), wanted)
    np.testing.assert_array_equal(kept.views, material.views)


def test_a_bare_run_gives_a_page_that_says_what_is_missing(tmp_path):
    path = tmp_path / "bare"
    path.mkdir()
    (path / "run.json").write_text("{}")
    page = page_of(path)
    assert page.disorder == []
    for sentence in (
        "The encoder was not judged.",
        "There are no scores",
        "There is no metrics.jsonl",
        "The features were not kept",
        "No patch features were kept",
        "No neighbours were kept",
        "Every file of the data could be decoded.",
    ):
        assert sentence in page.text
    assert [attrs["id"] for attrs in page.all("section")] == [
        "scores",
        "curves",
        "doctor",
        "patches",
        "neighbours",
        "run",
    ]


def test_without_labels_no_neighbour_is_right_or_wrong(tmp_path):
    material = make_material()
    assert material.neighbours is not None
    blank = type(material.neighbours)(
        **vars(material.neighbours)
        | {"query_labels": np.array(["", ""]), "neighbour_labels": np.full((2, 3), "")}
    )
    page = page_of(make_run(tmp_path / "run", scores=[]), ReportMaterial(neighbours=blank))
    assert "✓" not in page.text
    assert "✗" not in page.text
    assert {attrs.get("class") for attrs in page.all("figure")} >= {"query", ""}


def test_a_torn_last_line_is_left_out_and_a_broken_one_is_named(tmp_path):
    path = make_run(tmp_path / "run", steps=5)
    with (path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    assert len(read_metrics(path / "metrics.jsonl")) == 5
    assert "Loss" in page_of(path).text
    with (path / "metrics.jsonl").open("a") as file:
        file.write('\n{"step": 6, "loss": 1}\n')
    with pytest.raises(ValueError, match=r"metrics\.jsonl, line 6: not JSON"):
        write_report(path)


def test_figures_that_never_are_numbers_are_no_curve():
    rows = [{"step": step, "loss": None, "health/std": None, "lr": 1e-3} for step in range(5)]
    assert [curve.title for curve in draw_curves(rows)] == ["Learning rate"]
    assert draw_curves([]) == []


def test_a_damaged_folder_is_refused(tmp_path):
    path = make_run(tmp_path / "run")
    (path / "report_material.npz").write_bytes(b"PK nonsense")
    with pytest.raises(ValueError, match=r"report_material\.npz: damaged"):
        write_report(path)
    (path / "report_material.npz").unlink()
    (path / "scores.json").write_text("[{")
    with pytest.raises(ValueError, match=r"scores\.json: not a list of scores"):
        write_report(path)
    (path / "run.json").write_text("{torn")
    with pytest.raises(ValueError, match=r"run\.json: damaged"):
        write_report(path)
    with pytest.raises(ValueError, match="no run"):
        write_report(tmp_path / "nowhere")


def test_of_several_tasks_each_has_its_lead_on_the_page(tmp_path):
    scores = [replace(score, task=task) for task in ("digit", "direction") for score in SCORES]
    html = write_report(make_run(tmp_path / "run", steps=0, scores=scores)).read_text(encoding="utf-8")
    page = Page(html)
    assert page.disorder == []
    assert [attrs.get("colspan") for attrs in page.all("th") if attrs.get("scope") == "rowgroup"] == [
        "3",
        "3",
    ]
    assert page.text.count("Encoder − best baseline") == page.text.count("vs untrained encoder") == 2
    assert not page.all("tfoot")
    assert re.search(r"Digit, linear probe: 93\.0.*<br>Direction, linear probe: 93\.0", html)
    assert "2,000 train, 1,000 test" in page.text

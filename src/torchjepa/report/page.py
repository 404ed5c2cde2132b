"""The static page of a run: read its folder, draw what there is, say what is missing."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from torchjepa.engine import RunFolder
from torchjepa.evaluation import Score, read_scores
from torchjepa.report.clips_section import clip_sheets, film_strip, map_sheets, mask_section
from torchjepa.report.curves import draw_curves, read_metrics
from torchjepa.report.doctor_section import doctor_section
from torchjepa.report.material import (
    NeighbourExamples,
    PatchMaps,
    Pictures,
    ReportMaterial,
    load_material,
    save_material,
)
from torchjepa.report.pictures import draw_masks, enlarge, png_uri, principal_colours
from torchjepa.report.verdict import score_rows, write_verdict

_MISSING = {
    "scores": "There are no scores: the run was not judged, or its data have no labels.",
    "curves": "There is no metrics.jsonl to draw curves from.",
    "features": "The features were not kept; let the run end to see their spectrum and spread.",
    "patches": "No patch features were kept; judge the run to see them.",
    "neighbours": "No neighbours were kept; judge the run to see them.",
}
_SECTIONS = {
    "scores": "Scores",
    "curves": "Training",
    "doctor": "Doctor",
    "clips": "Clips",
    "clip_masks": "Masks",
    "masks": "Masks",
    "views": "Views",
    "patches": "Patch features",
    "clip_maps": "Features over time",
    "neighbours": "Neighbours",
    "run": "The run",
}
_OPTIONAL = {"masks", "views", "clips", "clip_masks", "clip_maps"}


def write_report(folder: str | Path, material: ReportMaterial | None = None) -> Path:
    """Write `report.html`, one self-contained page, from a run folder and the material that goes with it.

    The material is kept as `report_material.npz`, so that the page can be drawn again without the data.
    What is missing is named on the page.

    Args:
        folder: the run folder.
        material: pictures, patch features, neighbours and spectra; `None` takes what an earlier report kept.

    Returns:
        The page.

    Raises:
        ValueError: the folder holds no run, or one of its files is damaged.
    """
    run = RunFolder.open(folder)
    if material is None:
        material = load_material(run.path) or ReportMaterial()
    else:
        save_material(run.path, material)
    page = _environment().get_template("report.html.j2").render(_context(run, material))
    partial = run.report.with_name(f".{run.report.name}.partial")
    partial.write_text(page, encoding="utf-8")
    os.replace(partial, run.report)
    return run.report


def _environment() -> Any:
    import jinja2

    return jinja2.Environment(
        loader=jinja2.PackageLoader("torchjepa.report"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(run: RunFolder, material: ReportMaterial) -> dict[str, Any]:
    description = _description(run.run_json)
    rows = read_metrics(run.metrics)
    scores = read_scores(run.scores) if run.scores.is_file() else []
    parts = _parts(run, rows, material)
    optional = _OPTIONAL | ({"patches"} if material.clips else set())
    return parts | {
        "title": run.path.resolve().name,
        "verdict": write_verdict(scores),
        "facts": _facts(description, rows, scores, parts["doctor"]["short"]),
        "sections": [(key, name) for key, name in _SECTIONS.items() if key not in optional or parts[key]],
        "table": score_rows(scores),
        "notes": material.notes,
        "missing": _MISSING,
        "data_errors": _data_errors(run.data_errors),
        "versions": list(description.get("versions", {}).items()),
        "run_json": json.dumps(description, indent=2, ensure_ascii=False),
    }


def _parts(run: RunFolder, rows: list[dict[str, Any]], material: ReportMaterial) -> dict[str, Any]:
    return {
        "curves": draw_curves(rows),
        "doctor": doctor_section(run, material),
        "masks": None if material.masks is None else [_uris(each) for each in draw_masks(material.masks)],
        "views": None if material.views is None else [_uris(pair) for pair in material.views],
        "patches": None if material.patch_maps is None else _patch_rows(material.patch_maps),
        "clips": None if material.clips is None else clip_sheets(material.clips),
        "clip_masks": None if material.clips is None else mask_section(material.clips),
        "clip_maps": None if material.clip_maps is None else map_sheets(material.clip_maps),
        "neighbours": None if material.neighbours is None else _neighbour_rows(material.neighbours),
    }


def _description(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path}: damaged, it does not hold the description of a run ({error}).") from None


def _facts(
    description: Mapping[str, Any], rows: list[dict[str, Any]], scores: list[Score], doctor: str | None
) -> list[tuple[str, str]]:
    facts = [("Recipe", description.get("recipe")), ("Seed", description.get("seed"))]
    facts.append(("Device", _named(description.get("device"), "name")))
    if rows:
        facts.append(("Steps", f"{rows[-1].get('step', len(rows) - 1) + 1:,}"))
    # Of several tasks with other counts the table names them.
    if len({(score.n_train, score.n_test) for score in scores}) == 1:
        facts.append(("Labelled samples", f"{scores[0].n_train:,} train, {scores[0].n_test:,} test"))
    facts.append(("Doctor", doctor))
    facts.append(("Data", _named(description.get("data"), "description")))
    return [(name, str(value)) for name, value in facts if value not in (None, "")]


def _named(value: Any, key: str) -> Any:
    return value.get(key) if isinstance(value, Mapping) else value


def _patch_rows(maps: PatchMaps) -> list[tuple[str, list[str]]]:
    encoder, untrained = principal_colours(maps.encoder, maps.untrained)
    rows = {"Picture": maps.images, "Encoder": encoder, "Untrained": untrained}
    return [(name, _uris(enlarge(each) for each in pictures)) for name, pictures in rows.items()]


def _neighbour_rows(examples: NeighbourExamples) -> dict[str, Any]:
    is_clips = examples.queries.ndim == 5
    kind, uri = ("clip", film_strip) if is_clips else ("picture", png_uri)
    rows = []
    for index, query in enumerate(examples.queries):
        label = str(examples.query_labels[index])
        others = [
            _neighbour(label, str(other), uri(picture), float(similarity))
            for other, picture, similarity in zip(
                examples.neighbour_labels[index], examples.neighbours[index], examples.similarity[index]
            )
        ]
        rows.append({"image": uri(query), "label": label, "others": others})
    caption = (
        "Left of the line a test picture, right of it the training pictures whose features lie nearest, "
        "nearest first, with their cosine similarity."
    )
    if is_clips:
        caption = (
            f"First a test clip, then the training clips whose features lie nearest, nearest first, with their cosine "
            f"similarity. Of each clip {examples.queries.shape[1]} frames are shown, from its first to its last."
        )
    if (examples.query_labels != "").any():
        caption += " Green frame and \u2713: same label; orange frame and \u2717: another label."
    return {"rows": rows, "caption": caption, "kind": kind}


def _neighbour(label: str, other: str, image: str, similarity: float) -> dict[str, str]:
    tone, mark = "", ""
    if label and other:
        tone, mark = ("same", "\u2713 ") if label == other else ("other", "\u2717 ")
    return {"image": image, "label": other, "mark": mark, "tone": tone, "similarity": f"{similarity:.3f}"}


def _data_errors(path: Path) -> dict[str, Any]:
    # A file that training and judging both met is listed for each, and counts once.
    names: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
            names[row["name"]] = f"{row['name']}: {row['error']}"
        except (json.JSONDecodeError, KeyError, TypeError):  # the last line of a killed run may be torn
            continue
    if not names:
        return {"text": "Every file of the data could be decoded.", "examples": []}
    count = "One file" if len(names) == 1 else f"{len(names):,} files"
    text = f"{count} of the data could not be decoded and {'was' if len(names) == 1 else 'were'} left out"
    return {
        "text": text + ("; the first five:" if len(names) > 5 else ":"),
        "examples": list(names.values())[:5],
    }


def _uris(pictures: Iterable[Pictures]) -> list[str]:
    return [png_uri(picture) for picture in pictures]

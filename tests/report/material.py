"""A small run folder and material for it, made of nothing but numbers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from torchjepa.evaluation import Score, write_scores
from torchjepa.report import MaskExamples, NeighbourExamples, PatchMaps, ReportMaterial

SCORES = [
    Score("knn", "encoder", 0.851, 2000, 1000),
    Score("knn", "untrained", 0.54, 2000, 1000),
    Score("knn", "pixels", 0.52, 2000, 1000),
    Score("knn", "majority", 0.11, 2000, 1000),
    Score("linear", "encoder", 0.93, 2000, 1000),
    Score("linear", "untrained", 0.7, 2000, 1000),
    Score("linear", "pixels", 0.71, 2000, 1000),
    Score("linear", "majority", 0.11, 2000, 1000),
]


def make_run(path: Path, *, steps: int = 30, scores: list[Score] | None = None) -> Path:
    """A run folder with run.json, metrics and scores; the recipe's name needs escaping."""
    path.mkdir()
    description = {
        "recipe": "<script>alert('ijepa & co')</script>",
        "seed": 7,
        "versions": {"torchjepa": "0.1.0", "torch": "2.13.0"},
        "device": {"name": "cpu"},
        "data": {"description": "a folder of pictures, see https://example.org/pictures"},
    }
    (path / "run.json").write_text(json.dumps(description))
    rows = [
        {
            "step": step,
            "loss": 1 / (step + 1),
            "loss/prediction": 0.9 / (step + 1),
            "loss/variance": 0.1 / (step + 1),
            "lr": 1e-3 * step,
            "weight_decay": 0.04,
            "momentum": 0.99 + step * 1e-4,
            "health/std": 0.5,
            "health/effective_rank": 12.0,
            "health/max_rank": 63.0,
            "health/mean_cosine": None if step == 3 else 0.3,
            "health/relative_error": 0.8,
            **({"probe/knn": 0.4} if step % 10 == 0 else {}),
        }
        for step in range(steps)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    write_scores(path / "scores.json", SCORES if scores is None else scores)
    return path


def make_material(side: int = 16) -> ReportMaterial:
    """Material of every kind."""
    rng = np.random.default_rng(0)

    def pictures(*shape: int) -> np.ndarray:
        return rng.integers(0, 256, (*shape, side, side, 3), dtype=np.uint8)

    context = np.array([[0, 1, 2], [1, 2, 3]])
    targets = np.array([[[5, 6, 9, 10], [6, 7, 10, 11]], [[8, 9, 12, 13], [10, 11, 14, 15]]])
    return ReportMaterial(
        masks=MaskExamples(pictures(2), np.array([4, 4]), context, targets),
        views=pictures(3, 2),
        patch_maps=PatchMaps(
            pictures(2),
            rng.normal(size=(2, 4, 4, 6)).astype(np.float32),
            rng.normal(size=(2, 4, 4, 6)).astype(np.float32),
        ),
        neighbours=NeighbourExamples(
            pictures(2),
            np.array(["cat", "dog"]),
            pictures(2, 3),
            np.array([["cat", "dog", "cat"], ["cat", "dog", "dog"]]),
            np.array([[0.9, 0.8, 0.7], [0.95, 0.6, 0.5]], dtype=np.float32),
        ),
        spectra={"encoder": np.geomspace(1, 1e-4, 32), "untrained": np.geomspace(1, 1e-8, 32)},
        notes=("kNN: k = 12 & not 20.",),
    )

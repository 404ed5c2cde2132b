"""Where cases are kept once made: what the doctor takes, and the label with what it stands on."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import torchjepa
from benchmarks.doctor_zoo.case import Case, Material, Scores

_ROOMS = (
    "collapse",
    "data",
    "ema",
    "energy",
    "engine",
    "masking",
    "models",
    "nn",
    "schedules",
    "types",
    "rng",
)


class Store:
    """A folder with `dev/` and `heldout/`, each with `<case>.npz`, `<case>.jsonl` and `labels.json`.

    Args:
        path: the folder.
        reuse: take what is there even when the code has changed since.
    """

    def __init__(self, path: str | Path, *, reuse: bool = False) -> None:
        self.path, self._reuse = Path(path), reuse
        self._version = code_version()

    def label(self, case: Case) -> dict[str, Any]:
        """The label of a case, made first if need be; its proof is judged anew each time."""
        kept = self._labels(case.part).get(case.name)
        if kept is None or not (self._reuse or kept["version"] == self._version):
            return self.make(case)
        scores = None if kept["scores"] is None else Scores(**kept["scores"])
        return _label(case, Material(*self.material(case), scores), kept["seconds"], kept["version"])

    def make(self, case: Case) -> dict[str, Any]:
        """Make a case and keep it."""
        start = time.perf_counter()
        material = case.make()
        seconds = time.perf_counter() - start
        folder = self.path / case.part
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {name: value.detach().float().numpy() for name, value in material.features.items()}
        np.savez(folder / f"{case.name}.npz", **arrays)  # pyright: ignore[reportArgumentType]
        rows = "".join(f"{json.dumps(row)}\n" for row in material.history)
        (folder / f"{case.name}.jsonl").write_text(rows)
        label = _label(case, material, seconds, self._version)
        labels = self._labels(case.part) | {case.name: label}
        (folder / "labels.json").write_text(json.dumps(labels, indent=1) + "\n")
        return label

    def material(self, case: Case) -> tuple[dict[str, Tensor], list[dict[str, Any]]]:
        """Features and history of a case that has been made."""
        folder = self.path / case.part
        with np.load(folder / f"{case.name}.npz") as arrays:
            features = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
        return features, [
            json.loads(line) for line in (folder / f"{case.name}.jsonl").read_text().splitlines()
        ]

    def _labels(self, part: str) -> dict[str, Any]:
        path = self.path / part / "labels.json"
        return json.loads(path.read_text()) if path.exists() else {}


def _label(case: Case, material: Material, seconds: float, version: str) -> dict[str, Any]:
    proof = case.proof(material)
    return {
        "expected": case.expected,
        "group": case.group,
        "how": case.how,
        "trained": case.trained,
        "scores": None if material.scores is None else asdict(material.scores),
        "proof": proof.text,
        "holds": bool(proof.holds),
        "seconds": round(seconds, 1),
        "version": version,
    }


def code_version() -> str:
    """A digest of the sources that decide what a case is: the zoo's and those of the rooms that train."""
    root = Path(torchjepa.__file__).parent
    files = [*Path(__file__).parent.glob("*.py")]
    for room in _ROOMS:
        files += [*(root / room).rglob("*.py"), *root.glob(f"{room}.py")]
    files += [*(root / "evaluation").glob("health*"), *(root / "evaluation").glob("knn*")]
    skipped = {"__main__.py", "table.py", "store.py", "control.py", "proofs.py"}
    digest = hashlib.sha256()
    for file in sorted(files):
        if file.is_file() and file.name not in skipped:
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]

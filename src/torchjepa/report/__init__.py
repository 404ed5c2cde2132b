"""The static page of a run: curves, scores, spectrum, masks, features and neighbours in one file."""

from torchjepa.report.gather import Gatherer
from torchjepa.report.material import (
    ClipExamples,
    ClipMaps,
    MaskExamples,
    NeighbourExamples,
    PatchMaps,
    ReportMaterial,
    load_material,
    save_material,
)
from torchjepa.report.page import write_report

__all__ = [
    "ClipExamples",
    "ClipMaps",
    "Gatherer",
    "MaskExamples",
    "NeighbourExamples",
    "PatchMaps",
    "ReportMaterial",
    "load_material",
    "save_material",
    "write_report",
]

"""What a report shows that is not in the run's own files: pictures, patch features, neighbours, spectra."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

FILE_NAME = "report_material.npz"

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class MaskExamples:
    """Masks drawn over pictures.

    Args:
        images: uint8 `[b, height, width, 3]`; a picture comes once for each of the learner's masks.
        grid: rows and columns of the token grid, `[2]`.
        context: token ids that the context encoder sees, `[b, n_ctx]`, filled up with -1 where masks differ.
        targets: token ids of the target blocks, `[b, m, k]`, filled up with -1 where masks differ.
    """

    images: Pictures
    grid: NDArray[np.int64]
    context: NDArray[np.int64]
    targets: NDArray[np.int64]


@dataclass(frozen=True)
class PatchMaps:
    """Patch features of a few pictures, to be coloured by their principal components.

    Args:
        images: uint8 `[b, height, width, 3]`.
        encoder: tokens of the trained encoder on their grid, `[b, h, w, d]`.
        untrained: the same of the untrained encoder, `[b, h, w, d]`.
    """

    images: Pictures
    encoder: NDArray[np.float32]
    untrained: NDArray[np.float32]


@dataclass(frozen=True)
class ClipExamples:
    """Training clips as the learner sees them, with its masks over the first clip of each video.

    Args:
        clips: uint8 `[b, v, num_frames, height, width, 3]`.
        states: for each mask and token 0 (neither), 1 (context) or 2 (target), uint8 `[num_masks, b, t, h, w]`.
        context: share of many draws whose context holds the token, float32 `[num_masks, t, h, w]`.
        target: share of many draws in which the token is to be predicted, float32 `[num_masks, t, h, w]`.
    """

    clips: Pictures
    states: NDArray[np.uint8]
    context: NDArray[np.float32]
    target: NDArray[np.float32]


@dataclass(frozen=True)
class ClipMaps:
    """Features of a few test clips, coloured by their principal components.

    Args:
        clips: uint8 `[b, num_frames, height, width, 3]`.
        encoder: colours of the trained encoder's tokens, uint8 `[b, t, h, w, 3]`.
        untrained: the same of the untrained encoder, in its own components, uint8 `[b, t, h, w, 3]`.
    """

    clips: Pictures
    encoder: Pictures
    untrained: Pictures


@dataclass(frozen=True)
class NeighbourExamples:
    """A few test samples, each with the training samples that lie nearest in feature space.

    Args:
        queries: uint8 `[b, height, width, 3]`; of clips a few frames, `[b, num_frames, height, width, 3]`.
        query_labels: class names `[b]`, empty where there is none.
        neighbours: the same of `[b, k]` samples, nearest first.
        neighbour_labels: class names `[b, k]`, empty where there is none.
        similarity: cosine similarities `[b, k]`.
    """

    queries: Pictures
    query_labels: NDArray[np.str_]
    neighbours: Pictures
    neighbour_labels: NDArray[np.str_]
    similarity: NDArray[np.float32]


@dataclass(frozen=True)
class DoctorPictures:
    """What the doctor's section draws, of the encoder's features of clean samples.

    Args:
        deviations: standard deviation of each dimension over the samples, relative to the root mean square of all
            features, largest first, `[d]`.
        density: of standardised features, dimensions together, in `bins`, `[len(bins) - 1]`.
        bins: edges of the histogram, in standard deviations.
        angles: between the features of some samples, ordered by label, in degrees, float32 `[n, n]`.
        labels: their class names `[n]`, empty where there is none.
        token_spread: standard deviation over the samples of the tokens at each place, averaged over the
            dimensions and relative to the root mean square of all tokens, `[t, h, w]`.
    """

    deviations: NDArray[np.float32]
    density: NDArray[np.float32]
    bins: NDArray[np.float32]
    angles: NDArray[np.float32]
    labels: NDArray[np.str_]
    token_spread: NDArray[np.float32]


@dataclass(frozen=True)
class ReportMaterial:
    """What `write_report` cannot read from the run folder; a part that is missing is named in the report.

    Args:
        masks: masks over pictures, where the learner masks.
        views: augmented views of a few pictures, uint8 `[b, v, height, width, 3]`, where it has several.
        patch_maps: patch features of a few test pictures.
        clips: training clips and the masks over them, where the samples are videos.
        clip_maps: features of a few test clips over time.
        neighbours: nearest neighbours of a few test samples.
        doctor: what the doctor looked at.
        spectra: name (`encoder`, `untrained`, `projector`) to the eigenvalues of the feature covariance, `[d]`, largest
            first.
        notes: sentences that a reader of the scores should know.
    """

    masks: MaskExamples | None = None
    views: Pictures | None = None
    patch_maps: PatchMaps | None = None
    clips: ClipExamples | None = None
    clip_maps: ClipMaps | None = None
    neighbours: NeighbourExamples | None = None
    doctor: DoctorPictures | None = None
    spectra: Mapping[str, NDArray[np.float64]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


_GROUPS = {
    "masks": MaskExamples,
    "patch_maps": PatchMaps,
    "clips": ClipExamples,
    "clip_maps": ClipMaps,
    "neighbours": NeighbourExamples,
    "doctor": DoctorPictures,
}


def save_material(folder: str | Path, material: ReportMaterial) -> Path:
    """Keep the material in the run folder, so that the report can be drawn again without the data.

    Args:
        folder: the run folder.
        material: what to keep.

    Returns:
        The file, `report_material.npz`, written whole or not at all; arrays only, no pickle.
    """
    arrays: dict[str, NDArray] = {f"spectra/{name}": values for name, values in material.spectra.items()}
    arrays["notes"] = np.array(material.notes, dtype=np.str_)
    if material.views is not None:
        arrays["views"] = material.views
    for group in _GROUPS:
        part = getattr(material, group)
        if part is not None:
            arrays |= {f"{group}/{each.name}": getattr(part, each.name) for each in fields(part)}
    path = Path(folder) / FILE_NAME
    partial = path.with_name(f".{path.name}.partial")
    with partial.open("wb") as file:
        np.savez_compressed(file, **arrays)  # type: ignore[arg-type]
    os.replace(partial, path)
    return path


def load_material(folder: str | Path) -> ReportMaterial | None:
    """Read what `save_material` kept; `None` where there is nothing.

    Args:
        folder: the run folder.

    Raises:
        ValueError: the file is damaged or of another version.
    """
    path = Path(folder) / FILE_NAME
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = dict(file)
        groups = {
            name: kind(**{each.name: arrays[f"{name}/{each.name}"] for each in fields(kind)})
            for name, kind in _GROUPS.items()
            if any(key.startswith(f"{name}/") for key in arrays)
        }
        spectra = {key.split("/")[1]: values for key, values in arrays.items() if key.startswith("spectra/")}
        notes = tuple(str(note) for note in arrays["notes"])
    except (OSError, ValueError, KeyError, EOFError) as error:
        raise ValueError(
            f"{path}: damaged or of another version ({error}); remove it to report without."
        ) from None
    return ReportMaterial(views=arrays.get("views"), spectra=spectra, notes=notes, **groups)

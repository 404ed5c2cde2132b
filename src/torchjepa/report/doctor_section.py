"""The doctor's section as the template wants it: sentences, a table and figures."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from torchjepa.engine import RunFolder
from torchjepa.evaluation.spectrum import rank_of_spectrum
from torchjepa.report.doctor import figure_rows, read_checks, read_diagnosis, tell_checks, tell_verdict
from torchjepa.report.material import DoctorPictures, ReportMaterial
from torchjepa.report.pictures import heat_uri
from torchjepa.report.plots import Line, draw_lines, draw_spectra

_MISSING = "The doctor has not looked at this run: it had no check yet, and its training has not ended."


def doctor_section(run: RunFolder, material: ReportMaterial) -> dict[str, Any]:
    """Everything that the section shows.

    Args:
        run: for diagnosis.json, and for doctor.jsonl where the training has not ended.
        material: the pictures and spectra.

    Raises:
        ValueError: diagnosis.json is damaged.
    """
    checks = read_checks(run.doctor)
    diagnosis = read_diagnosis(run.diagnosis)
    where = ""
    if diagnosis is None and checks:
        diagnosis, where = checks[-1], f"Step {checks[-1].get('step')}: "
    text, tone = (_MISSING, "open") if diagnosis is None else tell_verdict(diagnosis)
    return {
        "verdict": {"text": where + text, "tone": tone},
        "short": None if diagnosis is None else where.lower() + diagnosis["verdict"],
        "rows": [] if diagnosis is None else figure_rows(diagnosis),
        "findings": [] if diagnosis is None else diagnosis["findings"],
        "notes": [] if diagnosis is None else diagnosis.get("notes", []),
        "checks": tell_checks(checks),
        "figures": [*_spectrum(material), *_figures(material.doctor)],
        "pictures": _pictures(material.doctor),
    }


def _spectrum(material: ReportMaterial) -> list[dict[str, str]]:
    if not material.spectra:
        return []
    ranks = ", ".join(
        f"{rank_of_spectrum(torch.from_numpy(values)):.1f} of {len(values)} ({name})"
        for name, values in material.spectra.items()
    )
    caption = (
        "Eigenvalues of the covariance of the training features, sorted and divided by the largest; both "
        "axes are logarithmic. A curve that stays high long uses many directions; one that drops early "
        f"lives in a few, which is dimensional collapse. Effective rank: {ranks}."
    )
    return [{"title": "Spectrum", "svg": draw_spectra(material.spectra), "caption": caption}]


def _figures(pictures: DoctorPictures | None) -> list[dict[str, str]]:
    if pictures is None:
        return []
    figures = [
        {
            "title": "Spread of each dimension",
            "svg": _curve("deviations", "dimension, by spread", "relative to all", pictures.deviations),
            "caption": "Standard deviation of each dimension over the samples, relative to the root mean square of "
            "all features, largest first. Dimensions at 0 are dead; all of them at 0 is a collapse to a point.",
        },
        {"title": "Feature histogram", "svg": _histogram(pictures), "caption": _HISTOGRAM},
    ]
    spread = pictures.token_spread
    if spread.shape[0] > 1:
        svg = _curve("time-spread", "time step", "relative to all tokens", spread.mean(axis=(1, 2)))
        figures.append({"title": "Spread at each time", "svg": svg, "caption": _OVER_TIME})
    if spread.size and min(spread.shape[1:]) == 1 and max(spread.shape[1:]) > 1:
        svg = _curve("token-spread", "token", "relative to all tokens", spread.mean(axis=0).ravel())
        figures.append({"title": "Spread at each token", "svg": svg, "caption": _OVER_TOKENS})
    return figures


_HISTOGRAM = (
    "Features of all living dimensions, each standardised, beside the normal density. Two peaks or a lone spike show "
    "dimensions that switch or saturate."
)
_OVER_TIME = "Standard deviation over the samples of the tokens at each time step, relative to all tokens."
_OVER_TOKENS = (
    "Standard deviation over the samples of the tokens at each place, relative to the root mean square of all tokens. "
    "A place at 0 gives the same token whatever it sees."
)


def _curve(name: str, x_label: str, y_label: str, values: NDArray[np.float32]) -> str:
    x = np.arange(1.0, len(values) + 1)
    return draw_lines(
        name, [Line(y_label, x, values.astype(np.float64))], x_label=x_label, y_label=y_label, from_zero=True
    )


def _histogram(pictures: DoctorPictures) -> str:
    middles = (pictures.bins[1:] + pictures.bins[:-1]) / 2
    normal = np.exp(-0.5 * middles.astype(np.float64) ** 2) / np.sqrt(2 * np.pi)
    lines = [
        Line("features", middles, pictures.density.astype(np.float64)),
        Line("normal", middles, normal, dashed=True),
    ]
    return draw_lines("histogram", lines, x_label="standard deviations", y_label="density", from_zero=True)


def _pictures(pictures: DoctorPictures | None) -> list[dict[str, Any]]:
    if pictures is None:
        return []
    ordered = "ordered by label" if (pictures.labels != "").any() else "in random order"
    shown = [
        {
            "title": "Similarity of samples",
            # Angles, because cosines of features with a common mean all lie near 1.
            "image": heat_uri(90.0 - pictures.angles, 90.0),
            "low": "90\N{DEGREE SIGN} or more",
            "high": "0\N{DEGREE SIGN}",
            "caption": f"Angle between the features of {len(pictures.labels)} samples, {ordered}. Bright all over "
            "means that all samples look alike to the encoder; bright squares along the diagonal are classes it "
            "tells apart.",
        }
    ]
    spread = pictures.token_spread
    if spread.size and min(spread.shape[1:]) > 1:
        places = spread.mean(axis=0)
        top = max(float(places.max()), 1e-9)
        shown.append(
            {
                "title": "Spread at each token",
                "image": heat_uri(places, top),
                "low": "0",
                "high": f"{top:.2g}",
                "caption": _OVER_TOKENS,
            }
        )
    return shown

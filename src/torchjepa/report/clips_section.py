"""The page's parts about clips as the template wants them: contact sheets, masks, coverage and features over time."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from torchjepa.report.clips import CONTEXT, COVERAGE_DRAWS, NEITHER, TARGET, spaced
from torchjepa.report.material import ClipExamples, ClipMaps, Pictures
from torchjepa.report.pictures import BLOCK_COLOURS, enlarge, frame_uri, heat_uri, png_uri
from torchjepa.report.plots import Line, draw_lines

_MAX_FRAMES, _MAX_STEPS = 16, 8
_GAP = 2  # grey pixels between the frames of a strip
_SIDE, _STRIP_SIDE = 128, 96  # pixels of a frame on the page, at least
_TARGET, _NEITHER = np.array(BLOCK_COLOURS[0]), np.array([128, 128, 128])


def clip_sheets(examples: ClipExamples) -> dict[str, Any]:
    """Contact sheets of the training clips, a row for each clip of a video.

    Args:
        examples: the clips.
    """
    num_clips, num_frames = examples.clips.shape[1:3]
    shown = spaced(num_frames, _MAX_FRAMES)
    sheets = []
    for number, video in enumerate(examples.clips, start=1):
        rows = []
        for index, clip in enumerate(video, start=1):
            name = f"Video {number}" + (f", clip {index}" if num_clips > 1 else "")
            cells = [_cell(_frame(clip[i]), f"{name}, frame {i + 1}") for i in shown]
            rows.append({"name": name, "note": "", "cells": cells})
        sheets.append({"columns": min(8, len(shown)), "unit": "", "head": [], "rows": rows})
    which = "All" if len(shown) == num_frames else f"{len(shown)} of the"
    return {"sheets": sheets, "frames": f"{which} {num_frames} frames of each clip", "several": num_clips > 1}


def mask_section(examples: ClipExamples) -> dict[str, Any] | None:
    """Each mask over time on each clip, and how often it covers each time step; `None` without masks.

    Args:
        examples: clips and masks.
    """
    num_masks, _, num_steps = examples.states.shape[:3]
    if num_masks == 0:
        return None
    names = [f"Mask {index + 1}" for index in range(num_masks)] if num_masks > 1 else ["Mask"]
    steps = spaced(num_steps, _MAX_STEPS)
    sheets = [
        _mask_sheet(f"Video {number + 1}", clip[0], examples.states[:, number], names, steps)
        for number, clip in enumerate(examples.clips)
    ]
    return {
        "sheets": sheets,
        "num_masks": num_masks,
        "frames_per_step": examples.clips.shape[2] // num_steps,
        "left_out": _left_out(steps, num_steps),
        "coverage": _coverage(examples, names, steps),
    }


def _mask_sheet(
    title: str, clip: Pictures, states: NDArray[np.uint8], names: list[str], steps: NDArray[np.int64]
) -> dict[str, Any]:
    frames = _first_frames(clip, states.shape[1])
    heads = _heads(len(clip), states.shape[1])
    rows = [_row(title, "", [_cell(_frame(frames[s]), f"{title}, frames {heads[s]}") for s in steps])]
    for name, state in zip(names, states):
        cells = [
            _cell(
                frame_uri(draw_state(frames[s], state[s])),
                f"{title}, frames {heads[s]}, {name.lower()}: {_in_words(state[s])}",
            )
            for s in steps
        ]
        rows.append(_row(name, _in_words(state), cells))
    return {"columns": len(steps), "unit": "frames", "head": [heads[s] for s in steps], "rows": rows}


def draw_state(frame: Pictures, state: NDArray[np.uint8]) -> Pictures:
    """A frame where the context encoder sees it, under orange where it is to be predicted, grey elsewhere.

    Args:
        frame: uint8 `[height, width, 3]`.
        state: `NEITHER`, `CONTEXT` or `TARGET` of each token, `[h, w]`.
    """
    picture = enlarge(frame, _SIDE)
    height, width = picture.shape[:2]
    rows, columns = np.arange(height) * state.shape[0] // height, np.arange(width) * state.shape[1] // width
    luma = picture.mean(axis=-1, keepdims=True)  # colours are the context's alone
    of_pixel = state[rows[:, None], columns][..., None]
    drawn = np.select(
        [of_pixel == CONTEXT, of_pixel == TARGET], [picture, 0.35 * luma + 0.65 * _TARGET], _NEITHER
    )
    return np.rint(drawn).astype(np.uint8)


def _in_words(state: NDArray[np.uint8]) -> str:
    kinds = {"context": CONTEXT, "targets": TARGET, "neither": NEITHER}
    # No line break between a number and its name.
    return ", ".join(
        f"{100 * float((state == kind).mean()):.0f}\N{NO-BREAK SPACE}%\N{NO-BREAK SPACE}{name}"
        for name, kind in kinds.items()
    )


def _coverage(examples: ClipExamples, names: list[str], steps: NDArray[np.int64]) -> dict[str, Any]:
    num_steps = examples.states.shape[2]
    x = np.arange(1.0, num_steps + 1)
    lines, rows = [], []
    for name, *shares in zip(names, examples.context, examples.target):
        for kind, share in zip(("context", "targets"), shares):
            label = kind if len(names) == 1 else f"{name.lower()}, {kind}"
            lines.append(Line(label, x, share.mean(axis=(1, 2)).astype(np.float64)))
            top = max(float(share.max()), 1e-9)
            cells = [
                _cell(heat_uri(share[s], top), f"{label}, time step {s + 1}: {_range(share[s])}")
                for s in steps
            ]
            rows.append(_row(label.capitalize(), _range(share), cells))
    svg = draw_lines("coverage", lines, x_label="time step", y_label="share of its tokens", from_zero=True)
    head = [str(s + 1) for s in steps]
    return {
        "svg": svg,
        "draws": f"{COVERAGE_DRAWS:,}",
        "sheet": {"columns": len(steps), "unit": "time step", "head": head, "rows": rows}
        if examples.states[0, 0, 0].size > 1
        else None,
    }


def _range(share: NDArray[np.float32]) -> str:
    return f"{100 * float(share.min()):.0f} to {100 * float(share.max()):.0f} %"


def map_sheets(maps: ClipMaps) -> dict[str, Any]:
    """The colours of the features over time under the frames they belong to, a sheet for each clip.

    Args:
        maps: clips and colours.
    """
    num_frames, num_steps = maps.clips.shape[1], maps.encoder.shape[1]
    steps, heads = spaced(num_steps, _MAX_STEPS), _heads(num_frames, num_steps)
    sheets = []
    for number, (clip, encoder, untrained) in enumerate(
        zip(maps.clips, maps.encoder, maps.untrained), start=1
    ):
        frames = _first_frames(clip, num_steps)
        title = f"Clip {number}"
        rows = [_row(title, "", [_cell(_frame(frames[s]), f"{title}, frames {heads[s]}") for s in steps])]
        for name, colours in {"Encoder": encoder, "Untrained": untrained}.items():
            alts = (f"{name}, {title.lower()}, frames {heads[s]}" for s in steps)
            rows.append(
                _row(name, "", [_cell(png_uri(enlarge(colours[s])), alt) for s, alt in zip(steps, alts)])
            )
        sheets.append(
            {"columns": len(steps), "unit": "frames", "head": [heads[s] for s in steps], "rows": rows}
        )
    return {"sheets": sheets, "left_out": _left_out(steps, num_steps)}


def film_strip(frames: Pictures) -> str:
    """Frames side by side in one picture, as a `data:` URI.

    Args:
        frames: uint8 `[num_frames, height, width, 3]`.
    """
    large = np.stack([enlarge(frame, _STRIP_SIDE) for frame in frames])
    spaced_out = np.pad(large, ((0, 0), (0, 0), (0, _GAP), (0, 0)), constant_values=128)
    return frame_uri(np.concatenate(list(spaced_out), axis=1)[:, :-_GAP])


def _frame(frame: Pictures) -> str:
    return frame_uri(enlarge(frame, _SIDE))


def _first_frames(clip: Pictures, num_steps: int) -> Pictures:
    return clip[np.arange(num_steps) * len(clip) // num_steps]


def _heads(num_frames: int, num_steps: int) -> list[str]:
    # Which frames each time step of the token grid spans, counted from 1.
    edges = [step * num_frames // num_steps for step in range(num_steps + 1)]
    return [f"{a + 1}" if b - a <= 1 else f"{a + 1}\N{EN DASH}{b}" for a, b in pairwise(edges)]


def _left_out(steps: NDArray[np.int64], num_steps: int) -> str:
    return "" if len(steps) == num_steps else f"{len(steps)} of the {num_steps} time steps are shown."


def _row(name: str, note: str, cells: Iterable[dict[str, str]]) -> dict[str, Any]:
    return {"name": name, "note": note, "cells": list(cells)}


def _cell(image: str, alt: str) -> dict[str, str]:
    return {"image": image, "alt": alt}

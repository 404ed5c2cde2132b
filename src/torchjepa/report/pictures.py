"""Arrays to pictures that stand inside the page: PNG as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image
from torch import Tensor

from torchjepa.report.material import MaskExamples, Pictures

# Okabe and Ito's palette: told apart by colour-blind readers too.
BLOCK_COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (213, 94, 0), (240, 228, 66))
_HIDDEN = np.array([128, 128, 128])
_SIDE = 192  # pixels of a drawn-over picture's longer side, at least


def to_pictures(x: Tensor, mean: Sequence[float], std: Sequence[float]) -> Pictures:
    """Undo the normalisation and make pictures of it.

    255 * (x * std + mean), cut to 0 to 255; one channel is repeated, and of more than three the first three
    are shown.

    Args:
        x: `[..., c, height, width]`, normalised.
        mean: per channel.
        std: per channel.

    Returns:
        uint8 `[..., height, width, 3]`.
    """
    values = np.moveaxis(x.detach().float().cpu().numpy(), -3, -1)
    values = np.rint(255.0 * (values * np.asarray(std) + np.asarray(mean))).clip(0, 255).astype(np.uint8)
    channels = values.shape[-1]
    return values[..., :3] if channels >= 3 else np.repeat(values[..., :1], 3, axis=-1)


def shrink(pictures: Pictures, side: int = 128) -> Pictures:
    """Pictures brought down to a longer side of at most `side` pixels; smaller ones stay as they are.

    Args:
        pictures: uint8 `[..., height, width, 3]`.
        side: pixels of the longer side.
    """
    height, width = pictures.shape[-3:-1]
    factor = side / max(height, width)
    if factor >= 1:
        return pictures
    return resized(pictures, (max(1, round(height * factor)), max(1, round(width * factor))))


def resized(pictures: Pictures, size: tuple[int, int]) -> Pictures:
    """Pictures at another size: each pixel the mean of what it covers, or repeated.

    Args:
        pictures: uint8 `[..., height, width, 3]`.
        size: height and width wanted.
    """
    height, width = size
    if pictures.shape[-3:-1] == (height, width):
        return pictures
    flat = pictures.reshape(-1, *pictures.shape[-3:])
    small = [np.asarray(Image.fromarray(each).resize((width, height), Image.Resampling.BOX)) for each in flat]
    return np.stack(small).reshape(*pictures.shape[:-3], height, width, 3)


def png_uri(picture: ArrayLike) -> str:
    """A picture, uint8 `[height, width, 3]`, as a `data:` URI."""
    return _uri("png", _encoded(picture, "PNG", optimize=True))


def frame_uri(picture: ArrayLike) -> str:
    """The same as PNG or JPEG, whichever is smaller: a page holds hundreds of frames."""
    png = _encoded(picture, "PNG", optimize=True)
    jpeg = _encoded(picture, "JPEG", quality=80)
    return _uri("png", png) if len(png) <= len(jpeg) else _uri("jpeg", jpeg)


def _encoded(picture: ArrayLike, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.asarray(picture, dtype=np.uint8)).save(buffer, kind, **options)
    return buffer.getvalue()


def _uri(kind: str, data: bytes) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"


def heat_uri(values: NDArray[np.float32], top: float) -> str:
    """A map, float `[h, w]`, in colours from 0 to `top`, as a `data:` URI."""
    from matplotlib import colormaps

    colours = colormaps["cividis"](np.clip(values / top, 0.0, 1.0))[..., :3]
    return png_uri(enlarge(np.rint(255 * colours).astype(np.uint8)))


def principal_colours(*maps: NDArray[np.float32]) -> list[Pictures]:
    """Colour patch features by their first three principal components, one colour space for all pictures.

    The components of all the tokens of a map (all its pictures together), each stretched from its 2nd to its
    98th percentile over 0 to 255. Signs are fixed so that each component's largest loading is positive.

    Args:
        maps: tokens `[b, (t,) h, w, d]`, each coloured by its own components.

    Returns:
        uint8 `[b, (t,) h, w, 3]` for each map.
    """
    return [_principal_colours(each) for each in maps]


def _principal_colours(tokens: NDArray[np.float32]) -> Pictures:
    flat = tokens.reshape(-1, tokens.shape[-1]).astype(np.float64)
    flat = flat - flat.mean(axis=0)
    _, directions = np.linalg.eigh(flat.T @ flat)
    top = directions[:, ::-1][:, :3]
    top = top * np.sign(top[np.abs(top).argmax(axis=0), np.arange(top.shape[1])])
    scores = flat @ top
    low, high = np.percentile(scores, [2, 98], axis=0)
    # A component without spread (a collapsed encoder) is mid-grey instead of amplified rounding.
    flatness = high - low < 1e-6 * max(np.abs(tokens).max(), 1e-12)
    unit = np.where(flatness, 0.5, (scores - low) / np.where(flatness, 1.0, high - low))
    unit = np.pad(unit, ((0, 0), (0, 3 - unit.shape[1])), constant_values=0.5)
    return np.rint(255 * unit.clip(0, 1)).astype(np.uint8).reshape(*tokens.shape[:-1], 3)


def draw_masks(masks: MaskExamples) -> list[tuple[Pictures, Pictures, Pictures]]:
    """For each sample the picture, what the context encoder sees of it, and the target blocks in colour.

    Args:
        masks: masks over pictures.

    Returns:
        Three pictures for each sample, uint8 `[height', width', 3]`, enlarged by a whole factor.
    """
    rows, columns = (int(each) for each in masks.grid)
    drawn = []
    for image, context, targets in zip(masks.images, masks.context, masks.targets):
        picture = enlarge(image)
        height, width = picture.shape[:2]
        cell_of_row = np.arange(height) * rows // height
        cell_of_column = np.arange(width) * columns // width
        cells = cell_of_row[:, None] * columns + cell_of_column[None, :]
        drawn.append((picture, _show_only(picture, cells, context), _tint(picture, cells, targets)))
    return drawn


def enlarge(picture: Pictures, side: int = _SIDE) -> Pictures:
    """A picture repeated by a whole factor, so that its longer side has at least `side` pixels."""
    factor = -(-side // max(picture.shape[:2]))
    return picture.repeat(factor, axis=0).repeat(factor, axis=1)


def _show_only(picture: Pictures, cells: NDArray[np.int64], ids: NDArray[np.int64]) -> Pictures:
    seen = np.isin(cells, ids)[..., None]
    return np.where(seen, picture, _HIDDEN).astype(np.uint8)


def _tint(picture: Pictures, cells: NDArray[np.int64], blocks: NDArray[np.int64]) -> Pictures:
    # Blocks may overlap: each tints, and all outlines are drawn last so that every block stays visible.
    faded = 0.45 * picture + 0.55 * 255 * 0.5
    insides = [np.isin(cells, ids) for ids in blocks]
    for index, inside in enumerate(insides):
        colour = np.array(BLOCK_COLOURS[index % len(BLOCK_COLOURS)])
        faded = np.where(inside[..., None], 0.5 * picture + 0.5 * colour, faded)
    for index, inside in enumerate(insides):
        faded = np.where(_border(inside)[..., None], BLOCK_COLOURS[index % len(BLOCK_COLOURS)], faded)
    return np.rint(faded).clip(0, 255).astype(np.uint8)


def _border(inside: NDArray[np.bool_], width: int = 3) -> NDArray[np.bool_]:
    core = np.pad(inside, width)
    for axis in (0, 1):
        core = np.logical_and.reduce([np.roll(core, shift, axis) for shift in (-width, 0, width)])
    return inside & ~core[width:-width, width:-width]

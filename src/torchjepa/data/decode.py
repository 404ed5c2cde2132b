"""From an image file of any kind to uint8 `[h, w, c]`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from torchjepa.data import jpeg
from torchjepa.data.errors import DecodeError

_JPEG_NAMES = (".jpg", ".jpeg")


def decode_image(
    path: str | os.PathLike[str], min_size: int | None = None, top: jpeg.TopRows | None = None
) -> NDArray[np.uint8]:
    """Decode one image file, upright, gray or RGB.

    The first frame of an animation; rotated and mirrored as its EXIF data says; transparency laid over white;
    CMYK and other colour spaces to RGB; 16-bit values divided by 257 (scaled, not clipped); 32-bit integers
    beyond 16 bits and floating point, which have no range of their own, stretched from minimum to maximum.

    Args:
        path: the file.
        min_size: a JPEG may be decoded at 1/2, 1/4 or 1/8 of its size as long as its shorter side keeps at
            least this many pixels; several times faster on photographs. `None` decodes at full size.
        top: the rows that will be looked at of an image of a size known from an earlier time. If it still has that
            size, those of a JPEG that lie further down may be black, undecoded. `None`: all.

    Returns:
        uint8 `[h, w, 1]` for a gray image, else `[h, w, 3]`.

    Raises:
        DecodeError: the file cannot be read or decoded, for whatever reason.
    """
    try:
        if (pixels := _decode_plain(path, min_size, top)) is not None:
            return pixels
        with Image.open(path) as image:
            if min_size is not None and image.format in ("JPEG", "MPO"):
                image.draft(image.mode, (min_size, min_size))
            ImageOps.exif_transpose(image, in_place=True)
            return _to_array(image)
    except Exception as error:  # a broken file makes Pillow raise whatever its parser stumbled over
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise DecodeError(f"{type(error).__name__}: {reason}" if reason else type(error).__name__) from error


def from_pillow(image: Image.Image) -> NDArray[np.uint8]:
    """An image that Pillow holds to uint8 `[h, w, 1 or 3]`: upright, gray or RGB, as `decode_image` says."""
    return _to_array(ImageOps.exif_transpose(image))


def _decode_plain(
    path: str | os.PathLike[str], min_size: int | None, top: jpeg.TopRows | None
) -> NDArray[np.uint8] | None:
    # Without simplejpeg nothing is gained but by leaving rows out.
    if (jpeg.simplejpeg is None and top is None) or not os.fspath(path).lower().endswith(_JPEG_NAMES):
        return None
    return jpeg.decode_jpeg(Path(path).read_bytes(), min_size, top)


def _to_array(image: Image.Image) -> NDArray[np.uint8]:
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return scale_to_uint8(np.asarray(image))[:, :, None]
    if image.has_transparency_data:
        gray = image.mode in ("L", "LA", "La")
        layer = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer).convert(
            "L" if gray else "RGB"
        )
    elif image.mode not in ("L", "RGB"):  # a conversion to the mode at hand would copy
        image = image.convert("L" if image.mode == "1" else "RGB")
    pixels = np.array(image)
    return pixels if pixels.ndim == 3 else pixels[:, :, None]


def scale_to_uint8(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Wide pixel values to uint8: 16 bits divided by 257, all else stretched from minimum to maximum.

    Args:
        values: any shape, integers or floats.

    Raises:
        DecodeError: a value is not finite.
    """
    wide = values.astype(np.float64)
    if not np.isfinite(wide).all():
        raise DecodeError("pixels hold NaN or infinity")
    low, high = float(wide.min()), float(wide.max())
    if np.issubdtype(values.dtype, np.integer) and low >= 0 and high <= 65535:
        low, high = 0.0, 65535.0
    span = high - low if high > low else 1.0
    return np.round((wide - low) * (255.0 / span)).astype(np.uint8)

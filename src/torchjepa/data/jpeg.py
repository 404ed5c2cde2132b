"""JPEG files decoded by libjpeg-turbo no further down than is needed, with the pixels of a full decode."""

from __future__ import annotations

from io import BytesIO
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image

try:
    import simplejpeg  # pyright: ignore[reportMissingImports]
except ImportError:  # the pixels are the same without, only later
    simplejpeg = None

_COLOURS = {1: "GRAY", 3: "RGB"}
_BLOCK = 8
_START, _END = b"\xff\xd8", b"\xff\xd9"
_SCAN, _EXIF_OR_XMP = 0xDA, 0xE1
_FRAMES = (0xC0, 0xC1, 0xC2)  # Huffman coded: baseline, extended, progressive
_PROGRESSIVE = 0xC2
_OTHER_SEGMENTS = (
    0xC4,
    0xDB,
    0xDD,
    0xFE,
    *range(0xE0, 0xF0),
)  # tables, restart interval, comment, applications


class TopRows(NamedTuple):
    """What will be looked at of an image whose size is known.

    Args:
        size: height and width of the decoded image.
        num_rows: how many of its rows, from the top.
    """

    size: tuple[int, int]
    num_rows: int


class _Header(NamedTuple):
    height: int
    width: int
    channels: int
    height_at: int  # where in the file the two bytes of the height are
    is_progressive: bool


def decode_jpeg(
    data: bytes, min_size: int | None = None, top: TopRows | None = None
) -> NDArray[np.uint8] | None:
    """Decode a plain JPEG: 8 bits, gray or colour, not turned, whole.

    Rows below `top` are not decoded: the height that the file states is lowered before it is decoded. A row of
    chroma reaches one row of pixels beyond its own, so one more is decoded than is asked for.

    Args:
        data: the file.
        min_size: the short side that is kept when the image is decoded at 1/2, 1/4 or 1/8; `None`: full size.
        top: what will be looked at; used where it states the size that the image turns out to have.

    Returns:
        uint8 `[h, w, 1]` or `[h, w, 3]`, black below `top`; `None` for a file that takes a more patient decoder.
    """
    header = _read_header(data)
    if header is None:
        return None
    scale = _reduction(header, min_size)
    size = -(-header.height // scale), -(-header.width // scale)
    if min(size) < _BLOCK:  # a scale and a size no longer tell one another
        return None
    # Only a whole file: of a torn one the rows that are there would hide that it is torn.
    if top is not None and top.size == size and not header.is_progressive and data.endswith(_END):
        rows = min(header.height, (top.num_rows + 1) * scale)
        if rows < header.height and (pixels := _decode_top(data, header, rows, scale)) is not None:
            return pixels
    return _decode_all(data, _COLOURS[header.channels], size)


def _decode_all(data: bytes, colour: str, size: tuple[int, int]) -> NDArray[np.uint8] | None:
    # Straight into an array by libjpeg-turbo, the library that Pillow calls too, but without Pillow's four bytes
    # for a pixel that are packed into three afterwards: 0.8 against 1.3 ms for 500 x 375.
    if simplejpeg is None:
        return None
    try:
        pixels = simplejpeg.decode_jpeg(data, colour, min_height=size[0], min_width=size[1])
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == size else None


def _decode_top(data: bytes, header: _Header, rows: int, scale: int) -> NDArray[np.uint8] | None:
    at = header.height_at
    short = data[:at] + rows.to_bytes(2, "big") + data[at + 2 :]
    pixels = np.empty((-(-header.height // scale), -(-header.width // scale), header.channels), np.uint8)
    size = -(-rows // scale), pixels.shape[1]
    if min(size) < _BLOCK:
        return None
    pixels[size[0] :] = 0
    try:
        if simplejpeg is None:
            pixels[: size[0]] = _by_pillow(short, size, scale)
        else:  # not strict: what follows the last row is superfluous, which is no error here
            colour = _COLOURS[header.channels]
            found = simplejpeg.decode_jpeg(
                short, colour, min_height=size[0], min_width=size[1], buffer=pixels, strict=False
            )
            if found.shape[:2] != size:
                return None
    except (ValueError, OSError):
        return None
    return pixels


def _by_pillow(data: bytes, size: tuple[int, int], scale: int) -> NDArray[np.uint8]:
    with Image.open(BytesIO(data)) as image:
        if scale > 1:
            image.draft(image.mode, (image.width // scale, image.height // scale))
        return np.asarray(image).reshape(*size, -1)


def _reduction(header: _Header, min_size: int | None) -> int:
    if min_size is None:
        return 1
    return max(scale for scale in (1, 2, 4, 8) if scale == 1 or min(header[:2]) // min_size >= scale)


def _read_header(data: bytes) -> _Header | None:
    # Segment by segment to the first scan; whatever is unusual is left to Pillow.
    place, frame, tagged = 2, None, False
    while data[:2] == _START and place + 4 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == _SCAN:
            return None if frame is None or (tagged and _is_turned(data)) else frame
        if marker in _FRAMES and frame is None and place + 10 <= len(data):
            frame = _read_frame(data, place)
            if frame is None:
                return None
        elif marker not in _OTHER_SEGMENTS:
            return None
        tagged = tagged or marker == _EXIF_OR_XMP
        place += 2 + (data[place + 2] << 8 | data[place + 3])
    return None


def _read_frame(data: bytes, place: int) -> _Header | None:
    height, width = (data[at] << 8 | data[at + 1] for at in (place + 5, place + 7))
    bits, channels = data[place + 4], data[place + 9]
    limit = Image.MAX_IMAGE_PIXELS  # beyond it Pillow warns, or refuses
    if bits != 8 or channels not in _COLOURS or not 0 < height * width <= (limit or height * width):
        return None
    return _Header(height, width, channels, place + 5, data[place + 1] == _PROGRESSIVE)


def _is_turned(data: bytes) -> bool:
    with Image.open(BytesIO(data)) as image:
        return image.getexif().get(ExifTags.Base.Orientation, 1) != 1

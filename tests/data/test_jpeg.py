import io

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from torchjepa.data import (
    BatchStream,
    DecodeError,
    ErrorLog,
    FolderSource,
    MaskedViewTransform,
    Preprocessing,
    Subset,
    TwoViewTransform,
    decode_image,
    jpeg,
)
from torchjepa.data.jpeg import TopRows, decode_jpeg
from torchjepa.data.transforms import SampleKeys
from torchjepa.types import BatchKeys

LIBRARIES = [None] if jpeg.simplejpeg is None else [jpeg.simplejpeg, None]


def picture(height, width, mode="RGB", seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (height // 5 + 1, width // 5 + 1, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))
    noisy = smooth + rng.normal(0, 8, smooth.shape)
    return Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).convert(mode)


def encoded(image, **options):
    file = io.BytesIO()
    image.save(file, "jpeg", **options)
    return file.getvalue()


@pytest.fixture(params=LIBRARIES, ids=lambda library: "Pillow" if library is None else "simplejpeg")
def library(request, monkeypatch):
    monkeypatch.setattr(jpeg, "simplejpeg", request.param)


@given(
    height=st.integers(1, 130),
    width=st.integers(1, 130),
    mode=st.sampled_from(["RGB", "L"]),
    options=st.fixed_dictionaries(
        {
            "quality": st.integers(20, 100),
            "subsampling": st.sampled_from(["4:4:4", "4:2:2", "4:2:0", "4:1:1"]),
        },
        optional={
            "progressive": st.booleans(),
            "restart_marker_blocks": st.integers(1, 6),
            "optimize": st.booleans(),
        },
    ),
    min_size=st.sampled_from([None, 60, 20, 8, 1]),
    share=st.floats(0, 1),
    seed=st.integers(0, 99),
)
def test_the_rows_asked_for_are_those_of_a_full_decode(height, width, mode, options, min_size, share, seed):
    data = encoded(picture(height, width, mode, seed), **options)
    with Image.open(io.BytesIO(data)) as image:
        if min_size is not None:
            image.draft(mode, (min_size, min_size))
        expected = np.asarray(image).reshape(image.height, image.width, -1)
    rows = max(1, round(share * len(expected)))
    for library in LIBRARIES:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(jpeg, "simplejpeg", library)
            pixels = decode_jpeg(data, min_size, TopRows(expected.shape[:2], rows))
        if pixels is None:  # left to Pillow, by which all rows are decoded
            continue
        assert pixels.shape == expected.shape
        np.testing.assert_array_equal(pixels[:rows], expected[:rows])


def test_rows_below_are_not_decoded(library):
    pixels = decode_jpeg(encoded(picture(200, 300)), None, TopRows((200, 300), 100))
    assert pixels is not None
    assert not pixels[101:].any()


@pytest.mark.parametrize("top", [None, TopRows((99, 300), 50), TopRows((200, 300), 200)])
def test_all_rows_are_decoded_where_the_size_is_another_or_all_are_asked_for(tmp_path, library, top):
    picture(200, 300).save(tmp_path / "a.jpg")
    assert np.array_equal(
        decode_image(tmp_path / "a.jpg", None, top), np.asarray(Image.open(tmp_path / "a.jpg"))
    )


@pytest.mark.parametrize(
    "options", [{"progressive": True}, {"exif": True}, {"mode": "CMYK"}, {"tail": b"\0\0"}]
)
def test_what_is_not_plain_is_decoded_whole(tmp_path, library, options):
    options = dict(options)
    image, tail = picture(64, 96, options.pop("mode", "RGB")), options.pop("tail", b"")
    if options.pop("exif", False):
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6
    path = tmp_path / "a.jpg"
    path.write_bytes(encoded(image, **options) + tail)
    whole = decode_image(path)
    assert np.array_equal(decode_image(path, None, TopRows(whole.shape[:2], 8)), whole)


def test_an_upright_picture_with_exif_data_is_plain(library):
    exif = Image.Exif()
    exif[0x0112] = 1
    pixels = decode_jpeg(encoded(picture(64, 96), exif=exif), None, TopRows((64, 96), 8))
    assert pixels is not None
    assert not pixels[16:].any()


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.99])
def test_a_torn_file_is_refused_however_few_rows_are_asked_for(tmp_path, library, kept):
    data = encoded(picture(200, 300))
    (tmp_path / "a.jpg").write_bytes(data[: int(kept * len(data))])
    with pytest.raises(DecodeError, match="truncated"):
        decode_image(tmp_path / "a.jpg", None, TopRows((200, 300), 8))


@pytest.mark.parametrize("seed", range(20))
def test_a_damaged_file_gives_the_rows_that_pillow_makes_of_it(tmp_path, library, seed):
    rng = np.random.default_rng(seed)
    data = bytearray(encoded(picture(120, 160)))
    for place in rng.integers(len(data) // 3, len(data) - 2, 3):
        data[place] = rng.integers(0, 255)
    (tmp_path / "a.jpg").write_bytes(data)
    expected = np.asarray(Image.open(tmp_path / "a.jpg"))
    pixels = decode_image(tmp_path / "a.jpg", None, TopRows((120, 160), 70))
    assert np.array_equal(pixels[:70], expected[:70])


@pytest.mark.parametrize("cut", range(2, 700, 23))
def test_no_header_however_short_is_beyond_reading(tmp_path, library, cut):
    (tmp_path / "a.jpg").write_bytes(encoded(picture(40, 40))[:cut])
    with pytest.raises(DecodeError):
        decode_image(tmp_path / "a.jpg", None, TopRows((40, 40), 8))


def test_a_picture_that_pillow_finds_too_large_is_refused(tmp_path, library, monkeypatch):
    picture(40, 40).save(tmp_path / "a.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(DecodeError, match="DecompressionBomb"):
        decode_image(tmp_path / "a.jpg", None, TopRows((40, 40), 8))


class Forgetful(FolderSource):
    def known_sizes(self, indices):
        return np.zeros((len(indices), 2), dtype=np.int64)


def views(source, transform, num_workers=0):
    errors = ErrorLog(None, len(source), max_fraction=1.0)
    stream = BatchStream(source, transform, seed=1, num_workers=num_workers, errors=errors)
    indices = tuple(range(len(source)))
    keys = (BatchKeys(epoch, (epoch,) * len(source), indices, 0, len(source)) for epoch in range(3))
    return [torch.cat(batch.views) for batch in stream.batches(keys, "cpu")], errors


@pytest.mark.parametrize("transform", [MaskedViewTransform, TwoViewTransform])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_leaves_rows_out_sees_the_crops_of_one_that_does_not(
    tmp_path, library, monkeypatch, transform, num_workers
):
    for number in range(6):
        picture(150 + number, 100, seed=number).save(tmp_path / f"{number}.jpg")
    (tmp_path / "torn.jpg").write_bytes((tmp_path / "0.jpg").read_bytes()[:3000])
    transform = transform(Preprocessing(32))
    tops = []
    monkeypatch.setattr(jpeg, "_decode_top", lambda *a, real=jpeg._decode_top: tops.append(a) or real(*a))
    found, errors = views(Subset(FolderSource(tmp_path)), transform, num_workers)
    assert num_workers or tops
    expected, others = views(Forgetful(tmp_path), transform)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True))
    assert len(errors) == len(others) == 1


@pytest.mark.parametrize("transform", [MaskedViewTransform, TwoViewTransform])
def test_a_crop_looks_at_no_row_further_down_than_was_said(transform):
    transform = transform(Preprocessing(16), scale=(0.05, 0.4))
    keys = SampleKeys(0, np.zeros(40, dtype=np.int64), np.arange(40))
    image = np.random.default_rng(0).integers(0, 256, (60, 50, 3), dtype=np.uint8)
    rows = transform.rows_needed(np.asarray([[60, 50]] * 40), keys)
    assert rows.min() < 50
    black = [np.where(np.arange(60)[:, None, None] < needed, image, 0).astype(np.uint8) for needed in rows]
    assert torch.equal(transform.crop(black, keys)[0], transform.crop([image] * 40, keys)[0])
    short = [
        np.where(np.arange(60)[:, None, None] < needed - 1, image, 0).astype(np.uint8) for needed in rows
    ]
    assert not torch.equal(transform.crop(short, keys)[0], transform.crop([image] * 40, keys)[0])

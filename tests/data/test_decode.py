from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from torchjepa.data import DecodeError, decode_image, jpeg
from torchjepa.data.decode import scale_to_uint8

RED, WHITE = (255, 0, 0), (255, 255, 255)


def saved(tmp_path, image, name, **options):
    image.save(tmp_path / name, **options)
    return tmp_path / name


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.png", "a.webp", "a.bmp", "a.tiff", "a.tif", "a.gif"])
def test_every_format_gives_an_rgb_array_of_its_size(tmp_path, name):
    image = decode_image(saved(tmp_path, Image.new("RGB", (40, 24), RED), name))
    assert image.shape == (24, 40, 3)
    assert image.dtype == np.uint8
    assert np.abs(image.astype(int) - RED).max() <= 4


@pytest.mark.parametrize(("mode", "value"), [("L", 77), ("1", 1), ("LA", (77, 255))])
def test_gray_images_have_one_channel(tmp_path, mode, value):
    image = decode_image(saved(tmp_path, Image.new(mode, (5, 4), value), "a.png"))
    assert image.shape == (4, 5, 1)
    assert (image == (255 if mode == "1" else 77)).all()


def test_transparency_lies_over_white(tmp_path):
    picture = Image.new("RGBA", (2, 1))
    picture.putpixel((0, 0), (255, 0, 0, 0))
    picture.putpixel((1, 0), (255, 0, 0, 51))
    assert decode_image(saved(tmp_path, picture, "a.png")).tolist() == [[[255, 255, 255], [255, 204, 204]]]


def test_a_transparent_colour_of_a_palette_lies_over_white(tmp_path):
    picture = Image.new("P", (2, 1))
    picture.putpalette([255, 0, 0, 0, 0, 255])
    picture.putpixel((1, 0), 1)
    image = decode_image(saved(tmp_path, picture, "a.png", transparency=0))
    assert image.tolist() == [[list(WHITE), [0, 0, 255]]]


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    values = np.asarray([[0, 257, 25700, 65535]], dtype=np.uint16)
    image = decode_image(saved(tmp_path, Image.fromarray(values), "a.png"))
    assert image[..., 0].tolist() == [[0, 1, 100, 255]]


def test_floating_point_is_stretched(tmp_path):
    values = np.asarray([[-2.0, 0.0, 2.0]], dtype=np.float32)
    image = decode_image(saved(tmp_path, Image.fromarray(values), "a.tiff"))
    assert image[..., 0].tolist() == [[0, 128, 255]]


def test_a_constant_float_image_is_black_and_nan_is_refused():
    assert (scale_to_uint8(np.full((2, 2), 7.0)) == 0).all()
    with pytest.raises(DecodeError, match="NaN or infinity"):
        scale_to_uint8(np.asarray([1.0, np.nan]))


def test_cmyk_becomes_rgb(tmp_path):
    picture = Image.new("CMYK", (16, 16), (0, 255, 255, 0))
    image = decode_image(saved(tmp_path, picture, "a.jpg", quality=100))
    assert image.shape == (16, 16, 3)
    assert np.abs(image.astype(int) - RED).max() <= 3


@pytest.mark.parametrize(("orientation", "corner"), [(1, (0, 0)), (3, (1, 1)), (6, (0, 1)), (8, (1, 0))])
def test_the_exif_orientation_is_applied(tmp_path, orientation, corner):
    picture = Image.new("RGB", (20, 10), "black")
    picture.paste("white", (0, 0, 5, 5))  # in the file: top left
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(saved(tmp_path, picture, "a.png", exif=exif))
    assert image.shape[:2] == ((10, 20) if orientation in (1, 3) else (20, 10))
    corners = image[[0, 0, -1, -1], [0, -1, 0, -1], 0].reshape(2, 2)
    assert corners[corner] == 255
    assert corners.sum() == 255


def test_the_first_frame_of_a_gif_is_taken(tmp_path):
    frames = [Image.new("RGB", (6, 6), color) for color in ("red", "blue")]
    path = saved(tmp_path, frames[0], "a.gif", save_all=True, append_images=frames[1:])
    assert (decode_image(path)[..., :3] == RED).all()


@pytest.mark.parametrize(
    ("min_size", "size"), [(None, (400, 600)), (101, (200, 300)), (100, (100, 150)), (600, (400, 600))]
)
def test_a_jpeg_is_reduced_while_its_short_side_stays_long_enough(tmp_path, min_size, size):
    path = saved(tmp_path, Image.new("RGB", (600, 400), RED), "a.jpg")
    assert decode_image(path, min_size).shape[:2] == size


def test_a_gray_jpeg_stays_gray_when_it_is_reduced(tmp_path):
    assert decode_image(saved(tmp_path, Image.new("L", (64, 64), 9), "a.jpg"), 16).shape == (16, 16, 1)


def test_broken_files_say_what_is_wrong(tmp_path):
    (tmp_path / "text.jpg").write_text("not an image")
    (tmp_path / "empty.png").touch()
    whole = saved(tmp_path, Image.effect_noise((64, 64), 50), "cut.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(whole[: len(whole) // 2])
    for name, message in (
        ("text.jpg", "cannot identify"),
        ("empty.png", "cannot identify"),
        ("cut.jpg", "truncated"),
    ):
        with pytest.raises(DecodeError, match=message):
            decode_image(tmp_path / name)
    with pytest.raises(DecodeError, match="No such file"):
        decode_image(tmp_path / "missing.jpg")


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("size", [(100, 77), (9, 40), (7, 5), (1, 1)])
@pytest.mark.parametrize("options", [{"quality": 90}, {"progressive": True, "subsampling": "4:4:4"}])
@pytest.mark.parametrize("min_size", [None, 30, 5, 1])
def test_the_faster_decoder_gives_pillows_pixels(tmp_path, monkeypatch, mode, size, options, min_size):
    pytest.importorskip("simplejpeg")
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 4), dtype=np.uint8)
    picture = Image.fromarray(pixels[:, :, :3]).resize((size[0], size[1])).convert(mode)
    path = saved(tmp_path, picture, "a.jpg", **options)
    faster = decode_image(path, min_size)
    monkeypatch.setattr(jpeg, "simplejpeg", None)
    assert np.array_equal(faster, decode_image(path, min_size))


@pytest.mark.parametrize("there", [True, False])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_turned_jpeg_is_upright_with_and_without_the_faster_decoder(
    tmp_path, monkeypatch, there, orientation
):
    if not there:
        monkeypatch.setattr(jpeg, "simplejpeg", None)
    picture = Image.new("RGB", (32, 16), "black")
    picture.paste("white", (0, 0, 16, 16))
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = decode_image(saved(tmp_path, picture, "a.jpg", exif=exif, quality=100))
    assert image.shape == ((16, 32, 3) if orientation == 1 else (32, 16, 3))
    assert (image[:8, :8] > 250).all()


def test_what_the_faster_decoder_refuses_or_sizes_otherwise_is_left_to_pillow(tmp_path, monkeypatch):
    path = saved(tmp_path, Image.new("RGB", (32, 16), RED), "a.jpg", quality=100)
    expected = decode_image(path)

    def refuse(*_, **__):
        raise ValueError("damaged")

    for decode_jpeg in (refuse, lambda *_, **__: np.zeros((8, 16, 3), dtype=np.uint8)):
        monkeypatch.setattr(jpeg, "simplejpeg", SimpleNamespace(decode_jpeg=decode_jpeg))
        assert np.array_equal(decode_image(path), expected)

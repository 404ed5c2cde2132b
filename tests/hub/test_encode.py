"""What comes out of `encode` is what a plain loop gives, whatever goes in."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

import torchjepa
from tests.data.movies import write_movie, write_sound
from torchjepa.data import ArraySource, DecodeError, ErrorLog, FolderSource, Preprocessing, read_clip
from torchjepa.hub import Pretrained, encode, stream_encoded

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "official"
EXACT: dict[str, Any] = {"precision": "32", "progress": False}


@pytest.fixture(scope="module")
def images() -> Pretrained:
    return torchjepa.load(OFFICIAL / "ijepa.pth.tar", num_heads=2)


@pytest.fixture(scope="module")
def videos() -> Pretrained:
    model = torchjepa.load(OFFICIAL / "vjepa2.pt", num_heads=2)
    return replace(model, preprocessing=Preprocessing(24, num_frames=4, frame_rate=4.0))


def pictures(num: int, seed: int = 0) -> list[np.ndarray]:
    generator = np.random.default_rng(seed)
    return [generator.integers(256, size=(20 + 7 * i, 31, 3), dtype=np.uint8) for i in range(num)]


def by_hand(model: Pretrained, arrays: list[np.ndarray]) -> Tensor:
    assert model.preprocessing is not None
    with torch.no_grad():
        return torch.cat([model.model(model.preprocessing(array)[None]).mean(1) for array in arrays])


def clip_by_hand(model: Pretrained, frames: list[np.ndarray]) -> Tensor:
    assert model.preprocessing is not None
    clip = torch.stack([model.preprocessing(frame) for frame in frames], dim=1)
    with torch.no_grad():
        return model.model(clip[None]).mean(1)


def test_official_inputs_give_official_outputs(images: Pretrained, videos: Pretrained) -> None:
    known = load_file(OFFICIAL / "ijepa_io.safetensors")
    found = images.encode(known["images"], pool="none", **EXACT)
    torch.testing.assert_close(found.features, known["target_encoder_full"], atol=1e-5, rtol=0)
    known = load_file(OFFICIAL / "vjepa2_io.safetensors")
    online = torchjepa.load(OFFICIAL / "vjepa2.pt", "encoder", num_heads=2)
    found = online.encode(known["clips"], pool="none", layers=[0, -1], batch_size=1, **EXACT)
    torch.testing.assert_close(found.features, known["encoder_full"], atol=1e-5, rtol=0)
    for layer in (0, 1):
        expected = known[f"encoder_layer_{layer}"]
        torch.testing.assert_close(found.layers[f"block_{layer}"], expected, atol=1e-5, rtol=0)
    one = videos.encode(known["clips"][0], **EXACT)
    torch.testing.assert_close(one.features[0], known["target_encoder_full"][0].mean(0), atol=1e-5, rtol=0)


def test_every_way_to_hold_pictures_gives_the_same(images: Pretrained, tmp_path: Path) -> None:
    arrays = pictures(5)
    expected = by_hand(images, arrays)
    for i, array in enumerate(arrays):
        (tmp_path / "deep").mkdir(exist_ok=True)
        Image.fromarray(array).save(tmp_path / "deep" / f"{i}.png")
    paths = [tmp_path / "deep" / f"{i}.png" for i in range(5)]
    tensors = [torch.from_numpy(array).permute(2, 0, 1) for array in arrays]
    numbered = tuple("01234")
    ways: list[tuple[Any, tuple[str, ...]]] = [
        (arrays, numbered),
        ([Image.fromarray(array) for array in arrays], numbered),
        (tensors, numbered),
        (paths, tuple(map(str, paths))),
        (tmp_path, tuple(f"deep/{i}.png" for i in range(5))),
        (str(tmp_path), tuple(f"deep/{i}.png" for i in range(5))),
        (FolderSource(tmp_path), tuple(f"deep/{i}.png" for i in range(5))),
        (
            [*arrays[:2], tensors[2], str(paths[3]), Image.fromarray(arrays[4])],
            ("0", "1", "2", str(paths[3]), "4"),
        ),
    ]
    for inputs, names in ways:
        found = images.encode(inputs, batch_size=2, **EXACT)
        torch.testing.assert_close(found.features, expected, atol=1e-5, rtol=1e-5)
        assert found.names == names
        assert found.seconds is None


def test_arrays_of_pictures(images: Pretrained) -> None:
    stack = np.stack([array[:20] for array in pictures(3)])
    expected = by_hand(images, list(stack))
    wide = stack.astype(np.uint16) * 257
    for inputs in (
        stack,
        stack / 255.0,
        wide,
        ArraySource(stack),
        torch.from_numpy(stack).permute(0, 3, 1, 2),
    ):
        torch.testing.assert_close(images.encode(inputs, **EXACT).features, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(images.encode(stack[0], **EXACT).features, expected[:1], atol=1e-5, rtol=1e-5)
    gray = images.encode(stack[0, :, :, 0], **EXACT).features
    torch.testing.assert_close(gray, by_hand(images, [stack[0, :, :, :1]]), atol=1e-5, rtol=1e-5)
    assert images.encode([stack, stack[0]], **EXACT).names == ("0/0", "0/1", "0/2", "1")


def test_any_size_that_the_patch_divides(images: Pretrained) -> None:
    x = torch.randn(3, 3, 16, 40)
    found = images.encode(x, pool="none", **EXACT)
    with torch.no_grad():
        torch.testing.assert_close(found.features, images.model(x), atol=1e-5, rtol=1e-5)
    mixed = images.encode([x, torch.randn(2, 3, 24, 24)], **EXACT)
    assert mixed.features.shape == (5, 32)
    with pytest.raises(ValueError, match="different shapes"):
        images.encode([x, torch.randn(2, 3, 24, 24)], pool="none", **EXACT)
    with pytest.raises(ValueError, match="25"):
        images.encode(torch.randn(1, 3, 25, 24), **EXACT)
    larger = images.encode(pictures(2), image_size=32, pool="none", **EXACT)
    assert larger.features.shape == (2, 16, 32)
    with pytest.raises(ValueError, match="30"):
        images.encode(pictures(2), image_size=30, **EXACT)


def test_a_clip_of_a_file_is_its_middle(videos: Pretrained, tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", 24, rate=8)
    found = videos.encode(path, **EXACT)
    frames = [frame.numpy() for frame in read_clip(path, 4, frame_rate=4.0).frames]
    torch.testing.assert_close(found.features, clip_by_hand(videos, frames), atol=1e-5, rtol=1e-5)
    assert found.names == (str(path),)
    assert found.seconds is not None
    assert found.seconds.tolist() == [[1.125, 1.875]]


def test_windows_of_a_long_video(videos: Pretrained, tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", 40, rate=8)  # 20 frames at 4 a second
    found = videos.encode([path, path], window=4, stride=6, batch_size=3, **EXACT)
    assert found.names == (str(path),) * 6
    assert found.seconds is not None
    assert found.seconds[:3].tolist() == [[0.0, 0.75], [1.5, 2.25], [3.0, 3.75]]
    sampled = [frame.numpy() for frame in read_clip(path, 40).frames[::2]]
    expected = [clip_by_hand(videos, sampled[i : i + 4]) for i in (0, 6, 12)]
    torch.testing.assert_close(found.features, torch.cat(expected * 2), atol=1e-5, rtol=1e-5)


def test_frames_in_memory_are_cut_like_files(videos: Pretrained, tmp_path: Path) -> None:
    path = write_movie(tmp_path / "a.mp4", 22, rate=4)
    clip = read_clip(path, 22).frames
    options = {"window": 4, "stride": 2, **EXACT}
    from_file = videos.encode(path, **options)
    from_array = videos.encode(clip.numpy(), **options)
    from_decoder = videos.encode(clip.permute(0, 3, 1, 2), **options)
    assert from_array.names == ("0",) * 10
    torch.testing.assert_close(from_array.features, from_file.features)
    torch.testing.assert_close(from_decoder.features, from_file.features)
    x = torch.randn(3, 7, 24, 24)
    tensors = [x[:, :4], x[:, 3:]]
    found = videos.encode(x, window=4, **EXACT)
    torch.testing.assert_close(found.features, videos.encode(tensors, **EXACT).features)
    assert videos.encode(clip[:3].numpy(), window=4, **EXACT).features.shape == (1, 32)
    assert videos.encode(clip[:8].numpy(), pool="none", **EXACT).features.shape == (1, 36, 32)


def test_a_picture_becomes_a_still_clip(videos: Pretrained, tmp_path: Path) -> None:
    (array,) = pictures(1)
    Image.fromarray(array).save(tmp_path / "a.png")
    expected = clip_by_hand(videos, [array] * 4)
    for inputs in (array, Image.fromarray(array), tmp_path / "a.png", tmp_path):
        torch.testing.assert_close(videos.encode(inputs, **EXACT).features, expected, atol=1e-5, rtol=1e-5)
    write_movie(tmp_path / "b.mp4")
    assert videos.encode(tmp_path, **EXACT).names == ("b.mp4",)  # videos go first


def test_a_stream_reads_no_further_than_its_batch(
    videos: Pretrained, tmp_path: Path, monkeypatch: Any
) -> None:
    path, read = write_movie(tmp_path / "a.mp4", 400, rate=4), []
    resize = Preprocessing.resize
    monkeypatch.setattr(Preprocessing, "resize", lambda self, images: read.append(1) or resize(self, images))
    stream = stream_encoded(videos, path, window=4, batch_size=2, **EXACT)
    assert len(next(stream)) == 2
    assert len(read) <= 12
    assert sum(len(chunk) for chunk in stream) == 98


def test_pools(images: Pretrained, videos: Pretrained) -> None:
    x = torch.randn(2, 3, 24, 24)
    tokens = images.encode(x, pool="none", **EXACT).features
    torch.testing.assert_close(images.encode(x, pool="mean", **EXACT).features, tokens.mean(1))
    torch.testing.assert_close(images.encode(x, **EXACT).features, tokens.mean(1))
    found = images.encode(x, pool=lambda each: each.amax(1), layers=[-1], **EXACT)
    torch.testing.assert_close(found.features, tokens.amax(1))
    torch.testing.assert_close(found.layers["block_1"], tokens.amax(1))
    probe = torchjepa.load(OFFICIAL / "vjepa2_probe.pt", "classifiers.0", num_heads=2).model
    clips = load_file(OFFICIAL / "vjepa2_io.safetensors")["clips"]
    both = replace(videos, parts={**videos.parts, "classifier": probe})
    expected = probe.pooler(videos.encode(clips, pool="none", **EXACT).features).flatten(1)  # type: ignore[operator]
    torch.testing.assert_close(both.encode(clips, pool="attentive", **EXACT).features, expected)
    torch.testing.assert_close(videos.encode(clips, pool=probe.pooler, **EXACT).features.flatten(1), expected)
    with pytest.raises(ValueError, match="needs a probe, and only target_encoder was loaded"):
        videos.encode(clips, pool="attentive", **EXACT)
    with pytest.raises(ValueError, match="no pooling 'maen'"):
        videos.encode(clips, pool="maen", **EXACT)


def test_no_gradient_is_kept_and_the_mode_comes_back(images: Pretrained) -> None:
    images.model.train()
    seen = []
    hook = images.model.register_forward_hook(lambda module, *_: seen.append(module.training))
    found = images.encode(torch.randn(2, 3, 24, 24), **EXACT)
    hook.remove()
    assert seen == [False]
    assert images.model.training
    images.model.eval()
    assert not found.features.requires_grad
    assert found.features.dtype == torch.float32


def test_bfloat16_where_it_is_quick(images: Pretrained, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(2, 3, 24, 24)
    exact = images.encode(x, **EXACT).features
    for quick in (True, False):
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda quick=quick: {"amx_bf16": quick}, raising=False
        )
        apart = (images.encode(x).features - exact).norm() / exact.norm()
        assert (1e-4 < apart < 3e-2) if quick else apart == 0
    rounded = images.encode(x, precision="bf16-mixed").features
    assert 1e-4 < (rounded - exact).norm() / exact.norm() < 3e-2
    half = replace(images, model=torchjepa.load(OFFICIAL / "ijepa.pth.tar", num_heads=2).model.bfloat16())
    assert half.encode(x, **EXACT).features.dtype == torch.float32


def test_what_cannot_be_decoded(videos: Pretrained, images: Pretrained, tmp_path: Path) -> None:
    write_movie(tmp_path / "a.mp4")
    write_sound(tmp_path / "b.mp4")
    write_movie(tmp_path / "c.mp4")
    with pytest.raises(DecodeError, match=r"b\.mp4.*holds no video, only audio"):
        videos.encode(tmp_path, **EXACT)
    errors = ErrorLog(tmp_path / "errors.jsonl", 3, max_fraction=0.5)
    found = torch.cat([chunk.features for chunk in stream_encoded(videos, tmp_path, errors=errors, **EXACT)])
    assert len(found) == 2
    (line,) = (tmp_path / "errors.jsonl").read_text().splitlines()
    assert json.loads(line)["name"] == "b.mp4"
    (tmp_path / "torn.png").write_bytes(b"\x89PNG torn")
    with pytest.raises(DecodeError, match=r"torn\.png cannot be decoded"):
        images.encode(tmp_path / "torn.png", **EXACT)


@pytest.mark.parametrize(
    ("inputs", "options", "message"),
    [
        (object(), {}, "cannot read a object"),
        ([], {}, "there is nothing to encode"),
        (torch.randn(4, 4), {}, r"cannot tell what \(4, 4\) is"),
        (np.zeros((3, 30, 30), np.uint8), {}, r"cannot tell what \(3, 30, 30\) is"),
        (np.full((30, 30, 3), 255.0), {}, "must be in"),
        (np.zeros((30, 30, 3), np.uint8), {"window": 4}, "this takes images"),
        (np.zeros((30, 30, 3), np.uint8), {"windw": 4}, "no option 'windw'. Did you mean window"),
        (np.zeros((30, 30, 3), np.uint8), {"batch_size": 0}, "batch_size must be at least 1"),
        (np.zeros((30, 30, 3), np.uint8), {"precision": "16"}, "precision must be"),
        (np.zeros((30, 30, 3), np.uint8), {"layers": [2]}, "choose 0 to 1"),
        ("movie.mp4", {}, "is a video, and this network takes images"),
        ("missing.png", {}, "missing.png cannot be decoded"),
    ],
)
def test_wrong_calls_are_named(
    images: Pretrained, inputs: Any, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        encode(images, inputs, **{"progress": False, **options})


def test_wrong_calls_of_a_video_network(videos: Pretrained, tmp_path: Path) -> None:
    clip = np.zeros((4, 30, 30, 3), np.uint8)
    with pytest.raises(ValueError, match="stride=2 needs window"):
        videos.encode(clip, stride=2)
    with pytest.raises(ValueError, match="window must be at least 1"):
        videos.encode(clip, window=0)
    with pytest.raises(ValueError, match=r"holds nothing to encode .*mp4.*png"):
        videos.encode(tmp_path)
    silent = replace(videos, preprocessing=None)
    with pytest.raises(ValueError, match="does not say what pictures go through"):
        silent.encode(clip)
    assert silent.encode(torch.randn(3, 4, 24, 24), **EXACT).features.shape == (1, 32)


def test_a_progress_bar_counts_inputs(images: Pretrained, capsys: pytest.CaptureFixture[str]) -> None:
    found = images.encode(pictures(3), precision="32", progress=True)
    assert len(found) == 3
    assert capsys.readouterr().out == ""

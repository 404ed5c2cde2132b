"""jepa export and jepa convert: what they print, write and refuse."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModel

import torchjepa
from tests.cli.conftest import Jepa
from tests.cli.tiny import IJEPA, write_array
from tests.hub.small import OFFICIAL, video_source


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an I-JEPA run, which has a predictor."""
    from torchjepa.cli.main import main

    place = tmp_path_factory.mktemp("trained")
    data = write_array(place / "data.npz")
    words = ["train", "ijepa-digits", *IJEPA, "--data", str(data), "--runs", str(place / "runs")]
    assert main(words) == 0
    return place / "runs" / "ijepa-digits"


def test_a_run_exports_its_encoder_and_says_how_near_it_is(jepa: Jepa, finished: Path) -> None:
    done = jepa("export", finished, "--format", "torch-export", "--dynamic")
    assert (done.code, done.err) == (0, "")
    first, second, third = done.out.splitlines()
    assert first.startswith(f"Wrote the encoder of {finished} to digits-encoder.pt2 (")
    assert second == "  pixels [batch, 1, 16, 16] -> tokens [batch, 16, 8], features [batch, 16]"
    assert third.startswith(
        f"Read back by torch.export.load of torch {torch.__version__}; largest difference"
    )
    assert Path("digits-encoder.pt2").is_file()


def test_a_run_exports_its_predictor_from_the_checkpoint(jepa: Jepa, trained: Path) -> None:
    done = jepa("export", trained, "--format", "safetensors", "--part", "predictor", "--out", "both")
    assert done.code == 0, done.err
    assert "-> prediction [1, 2, 8, 16]" in done.out
    assert "prediction 0.0e+00 (1e-04 is allowed)" in done.out
    assert set(torchjepa.load("both", "all").parts) == {"target_encoder", "predictor"}
    card = Path("both/README.md").read_text()
    assert "ijepa-digits" in card
    assert "| knn |" in card


def test_a_run_without_predictor_says_so(jepa: Jepa, finished: Path) -> None:
    done = jepa("export", finished, "--format", "onnx", "--part", "predictor")
    assert done.code == 2
    assert "has no predictor: it trained a JointEmbedding" in done.err


def test_a_released_file_exports_the_target_encoder_at_any_size(jepa: Jepa) -> None:
    file = OFFICIAL / "ijepa.pth.tar"
    done = jepa("export", file, "--format", "transformers", "--num-heads", 2, "--image-size", 32)
    assert done.code == 0, done.err
    assert "pixels [1, 3, 32, 32] -> tokens [1, 16, 32]" in done.out
    found = AutoModel.from_pretrained("ijepa-encoder-transformers").eval()
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        tokens = found(x).last_hidden_state
        for which, equal in (("target_encoder", True), ("encoder", False)):
            wanted = torchjepa.load(file, which, num_heads=2).model(x)
            assert torch.allclose(tokens, wanted, atol=1e-5) is equal


def test_the_online_encoder_is_exported_on_request(jepa: Jepa) -> None:
    file = OFFICIAL / "ijepa.pth.tar"
    for name, out in (("transformers", "t"), ("safetensors", "s")):
        done = jepa(*("export", file, "--format", name, "--num-heads", 2, "--which", "encoder", "--out", out))
        assert done.code == 0, done.err
        found = torchjepa.load(out).model.state_dict()
        wanted = torchjepa.load(file, "encoder", num_heads=2).model.state_dict()
        assert all(torch.equal(value, found[name]) for name, value in wanted.items())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--format", "onxx"), "There is no format 'onxx'; the formats are onnx, safetensors"),
        (("--format", "onnx", "--half", "--int8"), "exclude each other"),
        (("--format", "torch-export", "--int8"), "use --half, or --format onnx --int8"),
        (("--format", "timm"), "timm"),
        ((), "--format"),
    ],
)
def test_what_cannot_be_is_one_line(jepa: Jepa, finished: Path, words: tuple[str, ...], message: str) -> None:
    done = jepa("export", finished, *words)
    assert done.code == 2
    assert message in done.err
    assert "Traceback" not in done.err
    assert not list(Path().iterdir())


def test_convert_says_what_it_wrote_and_how_it_was_checked(jepa: Jepa) -> None:
    done = jepa("convert", OFFICIAL / "vjepa2.pt", "clip.safetensors", "--num-heads", 2)
    assert (done.code, done.err) == (0, "")
    first, second, *_ = done.out.splitlines()
    assert first.endswith("vjepa2.pt to clip.safetensors in the layout vjepa2")
    assert second == "  read back: 87 tensors, every bit the same"


def test_convert_takes_the_layout_from_the_ending_or_from_to(jepa: Jepa) -> None:
    torchjepa.save(video_source(), "own")
    for out, words, layout in (
        ("a.pt", (), "vjepa2"),
        ("b", ("--to", "transformers"), "transformers"),
        ("c", (), "torchjepa"),
    ):
        done = jepa("convert", "own", out, *words)
        assert done.code == 0, done.err
        assert f"in the layout {layout}" in done.out
    done = jepa("convert", "own", "d.pt", "--to", "vjepa3")
    assert done.code == 2
    assert "there is no layout 'vjepa3'; choose among torchjepa, transformers, ijepa" in done.err

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from tests.cli.tiny import write_array, write_folder
from torchjepa.cli.judged_clips import PIXEL_SIDE
from torchjepa.cli.judging import Judge, fewer, has_labels, sample
from torchjepa.data import Preprocessing, open_data, open_source
from torchjepa.nn import ConvEncoder, ViT


@pytest.fixture
def judge(tmp_path: Path) -> Judge:
    split = open_data(write_array(tmp_path / "data.npz"))
    preprocessing = Preprocessing(image_size=16, num_channels=1, mean=(0.5,), std=(0.25,))
    return Judge(split, preprocessing, "mean", torch.device("cpu"), batch_size=20)


class Normed(nn.Module):
    """Batch norm on the input itself, so that its statistics can be computed by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(1, momentum=0.1)
        self.drop = nn.Dropout(0.5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.drop(self.norm(x)).flatten(2).mT


def test_calibration_gives_batch_norms_the_statistics_of_the_data(judge: Judge) -> None:
    encoder = Normed()
    judge.calibrate(encoder)
    train, _ = judge.pixels()
    pixels = train.features.double().numpy()
    np.testing.assert_allclose(encoder.norm.running_mean, [pixels.mean()], rtol=1e-5)
    # 57 samples in batches of 20, 20 and 17: their unbiased variances, weighted by size.
    parts = [pixels[:20], pixels[20:40], pixels[40:]]
    variance = sum(len(part) * part.var(ddof=1) for part in parts) / len(pixels)
    np.testing.assert_allclose(encoder.norm.running_var, [variance], rtol=1e-4)
    assert encoder.norm.momentum == 0.1
    assert not any(part.training for part in encoder.modules())


def test_calibration_repeats_and_leaves_networks_without_batch_norm_alone(judge: Judge) -> None:
    states = []
    for _ in range(2):
        encoder = ConvEncoder(in_channels=1, widths=(4, 8), depths=(1, 1), strides=(2, 2), seed=0)
        judge.calibrate(encoder)
        states.append(encoder.state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    vit = ViT(image_size=16, patch_size=8, in_channels=1, embed_dim=16, depth=1, num_heads=2)
    before = {name: value.clone() for name, value in vit.state_dict().items()}
    judge.calibrate(vit)
    assert all(torch.equal(before[name], value) for name, value in vit.state_dict().items())


def test_features_are_encoded_as_the_run_trained(judge: Judge) -> None:
    seen: list[torch.dtype] = []

    class Probe(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = super().forward(x.flatten(2).mT)
            seen.append(y.dtype)
            return y

    for precision, dtype in (("32", torch.float32), ("bf16-mixed", torch.bfloat16)):
        train, _ = replace(judge, precision=precision).features(Probe(1, 4))
        assert set(seen) == {dtype}
        assert train.features.dtype == torch.float32
        seen.clear()


def test_raw_pixels_are_the_preprocessed_images_and_bounded(judge: Judge) -> None:
    train, test = judge.pixels()
    assert train.features.shape == (57, 256)
    first = judge.preprocessing(judge.split.train.read(0)).flatten()
    torch.testing.assert_close(train.features[0], first)
    large = replace(judge, preprocessing=replace(judge.preprocessing, image_size=224))
    assert large.pixels()[1].features.shape == (len(test), PIXEL_SIDE**2)
    told: list[str] = []
    identity = Normed().eval()
    large.scores(identity, identity, told.append)
    assert f"The raw-pixel baseline is judged at {PIXEL_SIDE} x {PIXEL_SIDE} pixels." in told


def test_a_sample_is_keyed_sorted_and_no_larger_than_asked_for(tmp_path: Path) -> None:
    source = open_source(str(write_array(tmp_path / "data.npz")))
    few = [
        [sample(source, 9, seed, key).name(i) for i in range(9)]
        for seed, key in ((0, "a"), (1, "a"), (0, "b"))
    ]
    again = sample(source, 9, 0, "a")
    assert [again.name(i) for i in range(9)] == few[0]
    assert len({tuple(names) for names in few}) == 3
    assert [int(name) for name in few[0]] == sorted({int(name) for name in few[0]})
    assert sample(source, 60, 0, "a") is source


def test_fewer_samples_on_each_side(judge: Judge) -> None:
    few = fewer(judge.split, 10, 2, seed=0)
    assert (len(few.train), len(few.test), few.description) == (10, 2, judge.split.description)
    assert fewer(judge.split, 10, None, seed=0).test is judge.split.test


def test_labels_are_two_classes_on_both_sides(tmp_path: Path, judge: Judge) -> None:
    assert has_labels(judge.split)
    assert not has_labels(fewer(judge.split, 50, 1, seed=0))
    assert not has_labels(open_data(write_folder(tmp_path / "plain", ("",), each=16)))

"""Gathering material: the right pictures, features and neighbours, the same every time."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.report.material import make_run
from torchjepa.data import ArraySource, DataSplit, Preprocessing
from torchjepa.evaluation import Features, covariance_spectrum
from torchjepa.masking import RandomMasking
from torchjepa.report import Gatherer, write_report
from torchjepa.report.gather import _spread
from torchjepa.report.pictures import draw_masks
from torchjepa.types import Batch, Grid

PREPROCESSING = Preprocessing(image_size=8, num_channels=3, mean=(0.5,) * 3, std=(0.25,) * 3)


def source(tmp_path, name: str, num: int, seed: int) -> ArraySource:
    rng = np.random.default_rng(seed)
    path = tmp_path / f"{name}.npz"
    np.savez(path, images=rng.integers(0, 256, (num, 8, 8, 3), dtype=np.uint8), labels=np.arange(num) % 4)
    return ArraySource(str(path))


def encode(x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.avg_pool2d(x, 2).flatten(2).transpose(1, 2)


@pytest.fixture
def gatherer(tmp_path) -> Gatherer:
    split = DataSplit(source(tmp_path, "train", 40, 0), source(tmp_path, "test", 20, 1), "numbers")
    return Gatherer(
        split=split,
        preprocessing=PREPROCESSING,
        grid=Grid(h=4, w=4),
        encode=encode,
        untrained=lambda x: -2 * encode(x),
        device="cpu",
    )


def features(gatherer: Gatherer) -> dict[str, tuple[Features, Features]]:
    def of(part) -> Features:
        x = torch.stack([PREPROCESSING(part.read(i)) for i in range(len(part))])
        return Features(encode(x).flatten(1), torch.from_numpy(part.labels), torch.arange(len(part)))

    pair = of(gatherer.split.train), of(gatherer.split.test)
    return {"encoder": pair, "pixels": pair}


def batch(gatherer: Gatherer, num_views: int) -> Batch:
    x = torch.stack([PREPROCESSING(gatherer.split.train.read(i)) for i in range(6)])
    return Batch((x,) * num_views, torch.arange(6), torch.zeros(6).long())


def test_everything_a_masked_run_shows(gatherer, tmp_path):
    found = features(gatherer)
    material = gatherer.gather(found, batch(gatherer, 1), masks=[RandomMasking(0.5)], notes=["a note"])
    assert material.views is None
    assert material.notes == ("a note",)
    assert list(material.spectra) == ["encoder"]
    np.testing.assert_array_equal(
        material.spectra["encoder"], covariance_spectrum(found["encoder"][0].features)
    )
    assert material.masks is not None
    assert material.masks.grid.tolist() == [4, 4]
    assert len(material.masks.images) == len(material.masks.context) == len(material.masks.targets) == 4
    np.testing.assert_array_equal(material.masks.images[0], gatherer.split.train.read(0))
    assert material.patch_maps is not None
    np.testing.assert_array_equal(material.patch_maps.untrained, -2 * material.patch_maps.encoder)
    again = gatherer.gather(found, batch(gatherer, 1), masks=[RandomMasking(0.5)])
    np.testing.assert_array_equal(again.masks.context, material.masks.context)
    assert write_report(make_run(tmp_path / "run"), material).is_file()


def test_neighbours_are_the_nearest_and_carry_their_own_labels(gatherer):
    found = features(gatherer)
    material = gatherer.gather(found, batch(gatherer, 2))
    assert material.masks is None
    assert material.views is not None
    assert material.views.shape == (6, 2, 8, 8, 3)
    examples = material.neighbours
    assert examples is not None
    train, test = gatherer.split.train, gatherer.split.test
    bank, queries = (each.features.double().numpy() for each in found["encoder"])
    for index, query in enumerate(examples.queries):
        row = next(i for i in range(20) if (test.read(i) == query).all())
        assert examples.query_labels[index] == test.classes[test.labels[row]]
        cosines = [b @ queries[row] / np.linalg.norm(b) / np.linalg.norm(queries[row]) for b in bank]
        order = np.argsort(cosines)[::-1][:6]
        np.testing.assert_allclose(examples.similarity[index], np.array(cosines)[order], atol=1e-5)
        for place, i in enumerate(order):
            np.testing.assert_array_equal(examples.neighbours[index, place], train.read(int(i)))
            assert examples.neighbour_labels[index, place] == train.classes[train.labels[i]]


def test_views_of_several_sizes_are_shown_at_the_size_of_the_first(gatherer):
    whole = batch(gatherer, 1).views[0]
    mixed = Batch((whole, whole[:, :, :4, :4]), torch.arange(6), torch.zeros(6).long())
    views = gatherer.gather(features(gatherer), mixed).views
    assert views.shape == (6, 2, 8, 8, 3)
    corner = gatherer.split.train.read(0)[:4, :4]
    np.testing.assert_array_equal(views[0, 1], corner.repeat(2, axis=0).repeat(2, axis=1))


def test_pictures_come_from_every_class_first():
    labels = torch.tensor([0] * 50 + [1] * 3 + [2] * 2 + [-1])
    rows = _spread(labels, 8, seed=0)
    assert len(set(rows.tolist())) == 8
    assert sorted(labels[rows[:4]].tolist()) == [-1, 0, 1, 2]
    assert _spread(labels[:2], 8, seed=0).shape == (2,)


def test_a_single_token_has_no_map(gatherer):
    single = Gatherer(
        **vars(gatherer) | {"grid": Grid(), "encode": lambda x: encode(x).mean(1, keepdim=True)}
    )
    assert single.gather(features(gatherer), batch(gatherer, 1)).patch_maps is None


def test_every_mask_of_the_learner_is_drawn_over_every_picture(gatherer):
    masks = (RandomMasking(0.25), RandomMasking(0.5, num_targets=2))
    drawn = gatherer.gather(features(gatherer), batch(gatherer, 1), masks=masks).masks
    alone = gatherer.gather(features(gatherer), batch(gatherer, 1), masks=masks[:1]).masks
    assert drawn is not None
    assert alone is not None
    assert len(drawn.images) == 8
    np.testing.assert_array_equal(drawn.images[::2], drawn.images[1::2])
    for row, (context, blocks) in enumerate(zip(drawn.context, drawn.targets)):
        shown = context[context >= 0]
        asked = [block[block >= 0] for block in blocks if (block >= 0).any()]
        assert len(asked) == (1 if row % 2 == 0 else 2)
        assert not set(shown) & {token for block in asked for token in block}
    np.testing.assert_array_equal([row[row >= 0] for row in drawn.context[::2]], alone.context)
    assert len(draw_masks(drawn)) == 8

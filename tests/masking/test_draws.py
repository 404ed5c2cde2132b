import numpy as np
import pytest

from torchjepa.masking import draws
from torchjepa.masking.draws import (
    ascending_keys,
    count,
    hide,
    integers,
    other_ids,
    random_intervals,
    random_order,
    random_subset,
    random_union,
    smallest,
)
from torchjepa.rng import generator


def test_integers_are_in_range_and_repeat():
    drawn = integers(5, (1000, 3), generator(0))
    assert set(drawn.ravel().tolist()) == set(range(5))
    assert np.array_equal(drawn, integers(5, (1000, 3), generator(0)))


@pytest.mark.parametrize("num_tokens", [1, 2, 7, 8, 196, 1568])
def test_orders_are_permutations(num_tokens):
    order = random_order(9, num_tokens, generator(1))
    assert np.array_equal(np.sort(order, axis=1), np.tile(np.arange(num_tokens), (9, 1)))


def test_every_order_is_equally_likely():
    order = random_order(24_000, 4, generator(2))
    _, counts = np.unique(order, axis=0, return_counts=True)
    assert len(counts) == 24
    # 1,000 expected of each, standard deviation 31.
    assert np.abs(counts - 1000).max() < 160


def test_every_subset_of_the_visible_tokens_is_equally_likely():
    visible = np.zeros((20_000, 9), dtype=bool)
    visible[:, [1, 3, 4, 6, 8]] = True
    subsets, counts = np.unique(random_subset(visible, 3, generator(3)), axis=0, return_counts=True)
    assert len(subsets) == 10
    assert set(subsets.ravel().tolist()) == {1, 3, 4, 6, 8}
    assert (np.diff(subsets, axis=1) > 0).all()
    # 2,000 expected of each, standard deviation 42.
    assert np.abs(counts - 2000).max() < 220


def test_a_subset_of_all_visible_tokens_is_all_of_them():
    visible = np.array([[True, False, True, True], [False, True, True, True]])
    assert random_subset(visible, 3, generator(0)).tolist() == [[0, 2, 3], [1, 2, 3]]


@pytest.mark.parametrize("num_values", [1, 3, 40])
def test_of_equal_keys_the_first_are_chosen(monkeypatch, num_values):
    # All that can tie: keys whose upper 32 bits are equal, whole keys, and the greatest key with hidden tokens.
    rng = np.random.default_rng(0)
    visible = rng.random((50, 30)) < 0.6
    visible[:, :10] = True
    top = (1 << draws._key_bits(30)) - 1
    keys = top - (rng.integers(num_values, size=(50, 30)) << rng.integers(0, 30, size=(50, 1)))
    monkeypatch.setattr(draws, "integers", lambda *_: keys)
    chosen = random_subset(visible, 10, generator(0))
    for row in range(50):
        ranked = sorted((int(keys[row, i]), i) for i in range(30) if visible[row, i])
        assert chosen[row].tolist() == sorted(i for _, i in ranked[:10])


def test_counting_and_hiding_tokens():
    visible = np.random.default_rng(0).random((7, 300)) < 0.9
    visible[2] = True
    assert count(visible).tolist() == [sum(row) for row in visible.tolist()]
    ids = np.random.default_rng(1).integers(300, size=(7, 4, 5))
    before = visible.copy()
    hide(visible, ids)
    for row in range(7):
        wanted = [bool(before[row, i]) and i not in set(ids[row].ravel().tolist()) for i in range(300)]
        assert visible[row].tolist() == wanted


def test_intervals_reach_every_place_equally_often():
    sizes = np.array([3, 1, 5, 8]).repeat(20_000)
    covered = random_intervals(8, sizes, generator(6))
    assert np.array_equal(covered.sum(1), sizes)
    starts = covered.argmax(1)
    for size in (1, 3, 5, 8):
        share = np.bincount(starts[sizes == size], minlength=9 - size) / 20_000
        assert np.abs(share - 1 / (9 - size)).max() < 0.015
        assert len(share) == 9 - size


def test_a_union_is_what_its_boxes_cover():
    sizes = np.array([[[2, 3], [4, 1]], [[1, 1], [4, 5]]])
    durations = np.array([[2, 3], [3, 1]])
    union = random_union((3, 4, 5), sizes, durations, generator(7))
    places = [
        random_intervals(length, size, stream)
        for stream in [generator(7)]
        for length, size in ((4, sizes[..., 0]), (5, sizes[..., 1]), (3, durations))
    ]
    for sample, t, h, w in np.ndindex(2, 3, 4, 5):
        held = any(
            places[0][sample, box, h] and places[1][sample, box, w] and places[2][sample, box, t]
            for box in (0, 1)
        )
        assert union[sample, t, h * 5 + w] == held
    assert random_union((3, 4, 5), sizes, None, generator(7)).shape == (2, 1, 20)


def test_other_ids_are_the_rest():
    assert other_ids(np.array([[0, 3], [1, 2]]), 5).tolist() == [[1, 2, 4], [0, 3, 4]]


def test_ascending_keys_choose_the_first():
    visible = np.array([[0, 1, 1, 0, 1], [1, 1, 1, 1, 1]], dtype=bool)
    assert smallest(ascending_keys(visible.shape), visible, 2).tolist() == [[1, 2], [0, 1]]

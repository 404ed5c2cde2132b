import numpy as np
import pytest

from torchjepa.masking import draws
from torchjepa.masking.draws import count, hide, integers, random_order, random_subset
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

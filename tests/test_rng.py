"""Keyed randomness: a function of its keys alone, streams that do not meet, uniform draws."""

import hashlib
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from torchjepa import rng

KEYS = st.one_of(st.integers(-(2**63), 2**63), st.text(max_size=8))
MASK = 2**64 - 1


def splitmix(x: int) -> int:
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


@given(a=st.lists(KEYS, max_size=4), b=st.lists(KEYS, max_size=4))
def test_a_seed_is_a_function_of_its_keys_and_other_keys_give_another(a: list, b: list) -> None:
    assert rng.derive_seed(0, *a) == rng.derive_seed(0, *a)
    assert 0 <= rng.derive_seed(0, *a) < 2**63
    assert (rng.derive_seed(0, *a) == rng.derive_seed(0, *b)) == (a == b)


def test_keys_do_not_run_together() -> None:
    seeds = {
        rng.derive_seed(0, *keys)
        for keys in [("a", "b"), ("ab",), ("ab", ""), ("", "ab"), (1,), ("1",), (11,), (1, 1), ("i1:1",), ()]
    }
    assert len(seeds) == 10
    assert rng.derive_seed(0, "mask", 1) != rng.derive_seed(1, "mask", 0)
    assert rng.derive_seed(0, np.int64(5)) == rng.derive_seed(0, 5)


def test_the_streams_of_published_runs_do_not_change() -> None:
    digest = hashlib.blake2b(b"i1:0s4:maski2:17", digest_size=8).digest()
    assert rng.derive_seed(0, "mask", 17) == int.from_bytes(digest, "little") >> 1


@pytest.mark.parametrize("key", [True, 1.5, None, b"mask", ("mask",)])
def test_a_key_of_another_type_is_refused(key: object) -> None:
    with pytest.raises(ValueError, match=r"rng: a key must be a string or an integer, got"):
        rng.derive_seed(0, key)  # type: ignore[arg-type]


def test_generators_repeat_and_touch_no_global_state() -> None:
    states = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()
    first = torch.randn(5, generator=rng.generator(3, "mask", 7))
    torch.manual_seed(1)
    assert torch.equal(first, torch.randn(5, generator=rng.generator(3, "mask", 7)))
    assert not torch.equal(first, torch.randn(5, generator=rng.generator(3, "mask", 8)))
    assert not torch.equal(first, torch.randn(5, generator=rng.generator(3, "noise", 7)))
    torch.set_rng_state(states[0])
    rng.uniforms(0, "augment", ids=[1], num=2)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.random.get_state()[1].tolist() == states[1]
    assert random.getstate() == states[2]


@given(ids=st.lists(st.integers(0, 2**62), min_size=1, max_size=4), num=st.integers(1, 4))
def test_uniforms_equal_splitmix_in_plain_integers(ids: list[int], num: int) -> None:
    start, golden = rng.derive_seed(7, "augment", 2), 0x9E3779B97F4A7C15
    draws = rng.uniforms(7, "augment", 2, ids=ids, num=num)
    for i, sample in enumerate(ids):
        state = splitmix((start + sample * golden) & MASK)
        for j in range(num):
            bits = splitmix((state + (j + 1) * golden) & MASK) >> 11
            assert draws[i, j] == bits / 2**53


def test_a_sample_draws_the_same_in_any_batch() -> None:
    whole = rng.uniforms(0, "augment", 3, ids=np.arange(10), num=5)
    np.testing.assert_array_equal(rng.uniforms(0, "augment", 3, ids=[7, 2], num=5), whole[[7, 2]])
    np.testing.assert_array_equal(rng.uniforms(0, "augment", 3, ids=[4], num=3), whole[[4], :3])
    assert not np.array_equal(rng.uniforms(0, "augment", 4, ids=np.arange(10), num=5), whole)


def test_uniforms_are_uniform_and_unrelated() -> None:
    draws = rng.uniforms(0, "augment", 0, ids=np.arange(20_000), num=4)
    assert draws.dtype == np.float64
    assert 0.0 <= draws.min() < 0.001
    assert 0.999 < draws.max() < 1.0
    counts = np.histogram(draws, bins=20, range=(0, 1))[0]
    expected = draws.size / 20
    assert ((counts - expected) ** 2 / expected).sum() < 43.8  # chi-squared, 19 degrees, p = 0.001
    assert np.abs(np.corrcoef(draws.T) - np.eye(4)).max() < 0.03
    assert abs(np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]) < 0.03
    assert np.unique(draws).size == draws.size

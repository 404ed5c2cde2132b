"""Ranks and micro-batches tile the global batch; epochs are permutations; the place follows from the step."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from torchjepa.engine import KeyedSampler
from torchjepa.types import BatchKeys

sizes = st.integers(1, 40)
parts = st.integers(1, 4)


def sampler(num_samples: int, batch: int, **changes: int) -> KeyedSampler:
    return KeyedSampler(num_samples, batch, **{"seed": 0, "total_steps": 6, **changes})


def stream(items: KeyedSampler) -> list[tuple[int, int]]:
    """(epoch, index) of every sample in turn."""
    return [pair for keys in items for pair in zip(keys.epochs, keys.indices)]


@given(num_samples=sizes, batch=sizes, seed=st.integers(0, 2**40))
def test_every_epoch_is_a_permutation(num_samples: int, batch: int, seed: int) -> None:
    drawn = stream(sampler(num_samples, batch, seed=seed))
    assert len(drawn) == 6 * batch
    assert [epoch for epoch, _ in drawn] == [place // num_samples for place in range(len(drawn))]
    for epoch, pairs in itertools.groupby(drawn, key=lambda pair: pair[0]):
        indices = [index for _, index in pairs]
        assert len(set(indices)) == len(indices)
        if (epoch + 1) * num_samples <= len(drawn):
            assert sorted(indices) == list(range(num_samples))


@given(num_samples=sizes, rows=st.integers(1, 5), accumulate=parts, world_size=parts)
def test_ranks_and_micro_batches_tile_the_global_batch(
    num_samples: int, rows: int, accumulate: int, world_size: int
) -> None:
    batch = rows * accumulate * world_size
    whole = list(sampler(num_samples, batch))
    seen: dict[int, list[BatchKeys]] = {}
    for rank in range(world_size):
        share = sampler(num_samples, batch, accumulate=accumulate, rank=rank, world_size=world_size)
        assert len(share) == len(list(share)) == 6 * accumulate
        for keys in share:
            seen.setdefault(keys.step, []).append(keys)
    for one in whole:
        pieces = sorted(seen[one.step], key=lambda keys: keys.row_start)
        assert [keys.row_start for keys in pieces] == list(range(0, batch, rows))
        assert all(len(keys) == rows and keys.global_size == batch for keys in pieces)
        assert sum((keys.indices for keys in pieces), ()) == one.indices
        assert sum((keys.epochs for keys in pieces), ()) == one.epochs


def test_micro_batches_of_a_rank_come_in_order() -> None:
    share = sampler(40, 12, accumulate=3, rank=1, world_size=2, total_steps=1)
    assert [keys.row_start for keys in share] == [2, 6, 10]


@given(num_samples=sizes, batch=sizes, start=st.integers(0, 6))
def test_a_later_start_is_the_tail(num_samples: int, batch: int, start: int) -> None:
    whole = list(sampler(num_samples, batch))
    tail = sampler(num_samples, batch, start_step=start)
    assert list(tail) == whole[start:]
    assert len(tail) == 6 - start


def test_seed_and_epoch_decide() -> None:
    first, second = (stream(sampler(100, 100, seed=0))[epoch * 100 : (epoch + 1) * 100] for epoch in (0, 1))
    assert [index for _, index in first] != [index for _, index in second]
    assert stream(sampler(100, 100, seed=0)) == stream(sampler(100, 100, seed=0))
    assert stream(sampler(100, 100, seed=0)) != stream(sampler(100, 100, seed=1))


def test_a_batch_larger_than_the_set_spans_epochs() -> None:
    (keys,) = sampler(3, 8, total_steps=1)
    assert keys.epochs == (0, 0, 0, 1, 1, 1, 2, 2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"accumulate": 3, "world_size": 2},
            "size 8 .* 2 process.* 3 micro-batch.*multiple of 6, 6",
        ),
        ({"world_size": 3}, "multiple of 3, 9 for instance"),
        ({"rank": 2, "world_size": 2}, r"rank must lie in \[0, world_size=2\), got 2"),
        ({"start_step": 7}, r"start_step must lie in \[0, total_steps=6\], got 7"),
    ],
)
def test_refusals(changes: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        sampler(10, 8, **changes)


def test_an_empty_set_is_refused() -> None:
    with pytest.raises(ValueError, match="num_samples must be at least 1, got 0"):
        sampler(0, 8)

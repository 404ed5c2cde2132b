"""Queries, keys and values side by side and apart."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.nn.native import oracle
from torchjepa.nn.native import attention, joined
from torchjepa.nn.native.joined import join_heads, split_heads

SIZES = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 6), st.integers(1, 5))


def parts(batch: int, heads: int, tokens: int, channels: int) -> list[Tensor]:
    return [oracle.numbers(batch, heads, tokens, channels, seed=i) for i in range(3)]


def by_loops(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    batch, heads, tokens, channels = q.shape
    side_by_side = torch.empty(batch, tokens, 3 * heads * channels)
    for which, part in enumerate((q, k, v)):
        for head in range(heads):
            start = (which * heads + head) * channels
            side_by_side[:, :, start : start + channels] = part[:, head]
    return side_by_side


@given(SIZES)
def test_what_is_joined_equals_loops_and_is_split_again(sizes: tuple[int, int, int, int]) -> None:
    batch, heads, tokens, channels = sizes
    q, k, v = parts(*sizes)
    together = join_heads(q, k, v)
    assert torch.equal(together, by_loops(q, k, v))
    shape = torch.Size((batch, tokens, heads * channels))
    apart = split_heads(together.view(batch * tokens, -1), shape, heads)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(apart, (q, k, v), strict=True))
    assert torch.equal(join_heads(*apart), together)


def split(batch: int = 2, heads: int = 3, tokens: int = 5, channels: int = 4) -> tuple[Tensor, ...]:
    flat = oracle.numbers(batch * tokens, 3 * heads * channels, seed=0)
    return split_heads(flat, torch.Size((batch, tokens, heads * channels)), heads)


def test_what_lies_side_by_side_is_joined_by_a_view() -> None:
    q, k, v = split()
    assert join_heads(q, k, v).data_ptr() == q.data_ptr()
    assert join_heads(q, k, v)._base is not None


def of_a_larger_batch(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    return q[1:], k[1:], v[1:]


NOT_SIDE_BY_SIDE: dict[str, Callable[..., tuple[Tensor, ...]]] = {
    "in another order": lambda q, k, v: (k, q, v),
    "one of them three times": lambda q, _k, _v: (q, q, q),
    "of a larger batch": of_a_larger_batch,
    "of later tokens": lambda q, k, v: tuple(each[:, :, 2:] for each in (q, k, v)),
    "of fewer heads": lambda q, k, v: tuple(each[:, :2] for each in (q, k, v)),
    "of fewer channels": lambda q, k, v: tuple(each[..., 1:3] for each in (q, k, v)),
    "of another memory": lambda q, k, v: (q, k, v.clone()),
    "with a copy of the first": lambda q, k, v: (q.clone(), k, v),
    "the same number everywhere": lambda q, k, v: tuple(torch.ones(()).expand(q.shape) for _ in range(3)),
}


@pytest.mark.parametrize("name", NOT_SIDE_BY_SIDE)
def test_what_lies_otherwise_is_joined_rightly(name: str) -> None:
    given_parts = NOT_SIDE_BY_SIDE[name](*split())
    assert torch.equal(join_heads(*given_parts), by_loops(*given_parts))


@pytest.mark.skipif(not oracle.has_products(), reason=oracle.NO_PRODUCTS)
def test_gradients_of_our_attention_are_joined_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    leaves = [part.to(torch.bfloat16).requires_grad_() for part in split(channels=8)]
    found = torch.autograd.grad(attention.attend(*leaves).float().sin().sum(), leaves)
    monkeypatch.setattr(joined.torch, "stack", lambda *_, **__: pytest.fail("a copy"))
    together = join_heads(*found)
    assert together.data_ptr() == found[0].data_ptr()
    monkeypatch.undo()
    assert torch.equal(together.float(), by_loops(*(each.float() for each in found)))

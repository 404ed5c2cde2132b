"""Tokens kept in memory or in a file, and what is collected of a stream."""

import os
from pathlib import Path

import pytest
import torch

from torchjepa.evaluation import Collector, TokenCache, Tokens, extract_features
from torchjepa.nn import MeanMaxPool, MeanPool
from torchjepa.types import Batch


def some(start: int, num: int, scale: float = 1.0) -> Tokens:
    draw = torch.Generator().manual_seed(start)
    ids = torch.arange(start, start + num)
    return Tokens(scale * torch.randn(num, 3, 5, generator=draw), ids % 4, ids)


def filled(cache: TokenCache, scale: float = 1.0) -> Tokens:
    for start, num in ((0, 4), (4, 3)):
        cache.add(some(start, num, scale))
    return cache.tokens()


def test_in_memory_tokens_are_exact() -> None:
    kept = filled(TokenCache(9, max_bytes=4 * 9 * 15))
    assert torch.equal(kept.tokens, torch.cat([some(0, 4).tokens, some(4, 3).tokens]))
    assert (len(kept), kept.ids.tolist(), kept.labels.tolist()) == (7, list(range(7)), [0, 1, 2, 3, 0, 1, 2])


def test_many_tokens_go_to_a_file_without_a_name_in_bfloat16(tmp_path: Path) -> None:
    # Beyond float16's range, too.
    kept = filled(TokenCache(9, max_bytes=4 * 9 * 15 - 1, folder=tmp_path), scale=1e9)
    exact = torch.cat([some(0, 4, 1e9).tokens, some(4, 3, 1e9).tokens])
    assert kept.tokens.dtype == torch.bfloat16
    assert torch.equal(kept.tokens, exact.bfloat16())
    assert os.listdir(tmp_path) == []
    assert kept.tokens[torch.tensor([6, 0])].float().shape == (2, 3, 5)


def test_what_does_not_fit_is_refused() -> None:
    cache = TokenCache(5)
    with pytest.raises(ValueError, match="there are no tokens"):
        cache.tokens()
    cache.add(some(0, 4))
    with pytest.raises(ValueError, match="behind 4 of at most 5 samples"):
        cache.add(some(4, 2))
    with pytest.raises(ValueError, match=r"tokens \(1, 2, 5\) do not fit"):
        cache.add(Tokens(torch.zeros(1, 2, 5), torch.zeros(1), torch.zeros(1)))
    with pytest.raises(ValueError, match=r"tokens must be \[b, n, d\], got \(2, 3\)"):
        Tokens(torch.zeros(2, 3), torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"labels must be \[2\] like tokens, got \(3,\)"):
        Tokens(torch.zeros(2, 3, 4), torch.zeros(3), torch.zeros(2))


def encode(x: torch.Tensor) -> torch.Tensor:
    return x.flatten(2).mT.sin()


def batches(ids: list[list[int]]) -> list[Batch]:
    every = torch.randn(80, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    return [Batch((every[torch.tensor(i)],), torch.tensor(i), torch.tensor(i) // 2 % 3) for i in ids]


def test_collected_features_are_those_of_extract_features() -> None:
    stream = batches([list(range(40)), list(range(40, 80))])
    cache = TokenCache(80)
    collector = Collector(encode, pool=MeanMaxPool(), device="cpu", cache=cache)
    for batch in stream:
        collector.add(batch)
    found, expected = (
        collector.features(),
        extract_features(encode, stream, device="cpu", pool=MeanMaxPool()),
    )
    assert torch.equal(found.features, expected.features)
    assert torch.equal(found.labels, expected.labels)
    assert torch.equal(cache.tokens().tokens.mean(dim=1), expected.features[:, :3])


def test_the_clips_of_a_video_are_averaged_and_their_tokens_joined() -> None:
    # Video 2 lacks its first clip and video 3 both.
    stream = batches([[0, 1, 2, 3], [5, 8, 9]])
    cache = TokenCache(5)
    collector = Collector(encode, pool=MeanPool(), device="cpu", cache=cache, num_clips=2)
    for batch in stream:
        collector.add(batch)
    found, tokens = collector.features(), cache.tokens()
    assert found.ids.tolist() == tokens.ids.tolist() == [0, 1, 2, 4]
    assert found.labels.tolist() == [0, 1, 2, 1]
    alone = {int(i): encode(b.views[0])[row] for b in stream for row, i in enumerate(b.ids)}
    for row, pair in enumerate(((0, 1), (2, 3), (5, 5), (8, 9))):
        torch.testing.assert_close(tokens.tokens[row], torch.cat([alone[i] for i in pair]))
        torch.testing.assert_close(found.features[row], (alone[pair[0]] + alone[pair[1]]).mean(dim=0) / 2)


def test_tokens_are_needed() -> None:
    collector = Collector(lambda x: x.flatten(1), pool=MeanPool(), device="cpu")
    with pytest.raises(ValueError, match=r"expected tokens \[b, n, d\] with b = 2, got \(2, 12\)"):
        collector.add(batches([[0, 1]])[0])

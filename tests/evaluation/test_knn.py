"""Nearest neighbours and their vote, against a double loop and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.neighbors import KNeighborsClassifier
from torch.utils._python_dispatch import TorchDispatchMode

from torchjepa.evaluation import Features, knn_accuracy, knn_predict, nearest, neighbours


def blobs(n: int, d: int = 16, num_classes: int = 4, seed: int = 0, noise: float = 1.5) -> Features:
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(num_classes, d, generator=torch.Generator().manual_seed(99))
    labels = torch.randint(num_classes, (n,), generator=generator)
    x = centres[labels] + noise * torch.randn(n, d, generator=generator)
    return Features(x, labels, torch.arange(n))


def vote_slowly(train: Features, queries: torch.Tensor, k: int) -> list[int]:
    x, q = train.features.double().numpy(), queries.double().numpy()
    predicted = []
    for query in q:
        similarity = [float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in x]
        order = sorted(range(len(x)), key=lambda i: -similarity[i])[:k]
        counts: dict[int, list[float]] = {}
        for i in order:
            counts.setdefault(int(train.labels[i]), []).append(similarity[i])
        best = max(sorted(counts), key=lambda label: (len(counts[label]), sum(counts[label])))
        predicted.append(best)
    return predicted


@pytest.mark.parametrize("k", [1, 2, 5, 20])
def test_the_vote_is_that_of_a_double_loop(k):
    train, test = blobs(120), blobs(60, seed=1)
    assert knn_predict(train, test.features, k=k).tolist() == vote_slowly(train, test.features, k)


def test_accuracy_is_that_of_scikit_learn_where_no_vote_is_tied():
    # Two classes and an odd k: no tie is possible.
    train, test = blobs(300, num_classes=2), blobs(200, num_classes=2, seed=1)
    theirs = KNeighborsClassifier(n_neighbors=21, metric="cosine", algorithm="brute")
    theirs.fit(train.features.numpy(), train.labels.numpy())
    wanted = theirs.score(test.features.numpy(), test.labels.numpy())
    assert 0.6 < wanted < 1
    assert knn_accuracy(train, test, k=21) == pytest.approx(wanted, abs=1e-12)


def test_a_tie_goes_to_the_larger_summed_similarity():
    angles = torch.tensor([0.1, 0.5, 0.2, 0.3])
    x = torch.stack([angles.cos(), angles.sin()], dim=1)
    query = torch.tensor([[1.0, 0.0]])
    train = Features(x, torch.tensor([0, 0, 7, 7]), torch.arange(4))
    assert knn_predict(train, query, k=4).tolist() == [7]
    # Three against one is no tie, however far the three are.
    train = Features(x, torch.tensor([3, 0, 0, 0]), torch.arange(4))
    assert knn_predict(train, query, k=4).tolist() == [0]


def test_chunks_change_nothing(monkeypatch):
    train, test = blobs(200), blobs(77, seed=1)
    whole = nearest(test.features, train.features, 5)
    monkeypatch.setattr(neighbours, "_SIMILARITIES_HELD", 1000)  # 5 queries at a time
    pieces = nearest(test.features, train.features, 5)
    assert torch.equal(whole[1], pieces[1])
    torch.testing.assert_close(whole[0], pieces[0])


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(1, 700),
    k=st.integers(1, 20),
    values=st.sampled_from([3, 1000]),
    group=st.integers(2, 9),
    seed=st.integers(0, 99),
)
def test_the_largest_are_those_of_a_full_sort(n, k, values, group, seed):
    # Few values: many ties, also at the edge of what is taken. Small groups: many levels of maxima.
    generator = torch.Generator().manual_seed(seed)
    similarity = torch.randint(values, (4, n), generator=generator).float() - values / 2
    k = min(k, n)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(neighbours, "_GROUP", group)
        found, columns = neighbours._largest(similarity, k)
    wanted = -np.sort(-similarity.numpy(), axis=1)[:, :k]
    assert np.array_equal(found.numpy(), wanted)
    assert torch.equal(similarity.gather(1, columns), found)
    assert all(len(set(row)) == k for row in columns.tolist())


def spread_out(n: int, generator: torch.Generator) -> torch.Tensor:
    return torch.randn(n, 24, generator=generator)


def far_from_the_origin(n: int, generator: torch.Generator) -> torch.Tensor:
    return 50 + torch.randn(n, 24, generator=generator)


def in_tight_clusters(n: int, generator: torch.Generator) -> torch.Tensor:
    centres = torch.randn(5, 24, generator=torch.Generator().manual_seed(9))
    return centres[torch.randint(5, (n,), generator=generator)] + 1e-3 * torch.randn(
        n, 24, generator=generator
    )


def twice_the_same(n: int, generator: torch.Generator) -> torch.Tensor:
    few = torch.randn(n // 20, 24, generator=generator)
    return few[torch.randint(len(few), (n,), generator=generator)]


def with_zeros_and_one_giant(n: int, generator: torch.Generator) -> torch.Tensor:
    x = torch.randn(n, 24, generator=generator)
    x[::7], x[3] = 0.0, 1e18
    return x


@pytest.mark.parametrize(
    "features", [spread_out, far_from_the_origin, in_tight_clusters, twice_the_same, with_zeros_and_one_giant]
)
@pytest.mark.parametrize("rounds", [True, False])
def test_neighbours_are_those_of_float64_with_and_without_rounding(monkeypatch, features, rounds):
    monkeypatch.setattr(neighbours, "_pays_to_round", lambda *_: rounds)
    monkeypatch.setattr(neighbours, "_ROUNDED_QUERIES_AT_ONCE", 50)
    generator = torch.Generator().manual_seed(0)
    bank, queries = features(1500, generator), features(170, generator)
    similarity, rows = nearest(queries, bank, 7)
    x, q = bank.double().numpy(), queries.double().numpy()
    x /= np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    q /= np.maximum(np.linalg.norm(q, axis=1, keepdims=True), 1e-12)
    exact = q @ x.T
    wanted = -np.sort(-exact, axis=1)[:, :7]
    np.testing.assert_allclose(similarity.numpy(), wanted, atol=2e-6)
    np.testing.assert_allclose(np.take_along_axis(exact, rows.numpy(), axis=1), wanted, atol=2e-6)
    assert all(len(set(row)) == 7 for row in rows.tolist())


@pytest.mark.parametrize("features", [spread_out, far_from_the_origin, in_tight_clusters])
def test_the_bound_on_rounding_holds_and_is_no_wider_than_needed(features):
    generator = torch.Generator().manual_seed(1)
    bank, queries = (torch.nn.functional.normalize(features(n, generator)) for n in (2000, 100))
    scores, errors = neighbours._Rounded(bank, 5, len(queries)).scores(queries)
    mean = bank.mean(dim=0).double()
    exact = queries.double() @ bank.double().T - (queries.double() @ mean)[:, None]
    apart = (scores.double() - exact).abs()
    allowed = errors.double()[:, None] + neighbours._BFLOAT16_UNIT * scores.double().abs()
    assert bool((apart <= allowed).all())
    assert float((apart / allowed).max()) > 0.05


def test_what_bfloat16_cannot_tell_apart_is_compared_in_float32(monkeypatch):
    asked: list[int] = []
    compare = neighbours._Whole.nearest
    monkeypatch.setattr(neighbours, "_pays_to_round", lambda *_: True)
    monkeypatch.setattr(neighbours, "_ROUNDED_QUERIES_AT_ONCE", 50)
    monkeypatch.setattr(
        neighbours._Whole, "nearest", lambda self, rows: asked.append(len(rows)) or compare(self, rows)
    )
    generator = torch.Generator().manual_seed(0)
    nearest(spread_out(100, generator), spread_out(1500, generator), 2)
    assert asked == []
    # The first chunk shows that it does not help; the second is not rounded any more.
    nearest(in_tight_clusters(100, generator), in_tight_clusters(1500, generator), 2)
    assert asked == [50, 50]


class LargestTensor(TorchDispatchMode):
    numel = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in result if isinstance(result, (tuple, list)) else [result]:
            self.numel = max(self.numel, each.numel() if isinstance(each, torch.Tensor) else 0)
        return result


@pytest.mark.parametrize("rounds", [True, False])
def test_no_tensor_grows_with_queries_times_bank(monkeypatch, rounds):
    monkeypatch.setattr(neighbours, "_pays_to_round", lambda *_: rounds)
    monkeypatch.setattr(neighbours, "_SIMILARITIES_HELD", 2000 * 64)
    generator = torch.Generator().manual_seed(0)
    bank = spread_out(2000, generator)
    sizes = []
    for num in (64, 2000):
        with LargestTensor() as largest:
            nearest(spread_out(num, generator), bank, 5)
        sizes.append(largest.numel)
    assert sizes[0] == sizes[1] == 2000 * 64


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 30), k=st.integers(1, 30), scale=st.floats(1e-3, 1e3), seed=st.integers(0, 99))
def test_neighbours_are_sorted_distinct_and_blind_to_scale(n, k, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    bank, queries = torch.randn(n, 4, generator=generator), torch.randn(3, 4, generator=generator)
    k = min(k, n)
    similarity, rows = nearest(queries, bank, k)
    assert (similarity.diff(dim=1) <= 0).all()
    assert all(len(set(row)) == k for row in rows.tolist())
    torch.testing.assert_close(nearest(queries * scale, bank, k)[0], similarity, rtol=1e-4, atol=1e-5)


def test_samples_without_a_label_neither_vote_nor_count():
    train, test = blobs(100), blobs(50, seed=1)
    wanted = knn_accuracy(train, test)
    blank = torch.full((30,), -1)
    more = Features(
        torch.cat([train.features, test.features[:30]]), torch.cat([train.labels, blank]), torch.arange(130)
    )
    judged = Features(
        torch.cat([test.features, train.features[:30]]), torch.cat([test.labels, blank]), torch.arange(80)
    )
    assert knn_accuracy(more, judged) == wanted


def test_a_zero_vector_is_no_reason_to_fail():
    train = blobs(40)
    assert knn_predict(train, torch.zeros(2, 16)).shape == (2,)


def test_refusals_say_what_is_wrong():
    train, test = blobs(10), blobs(5, seed=1)
    with pytest.raises(ValueError, match=r"k must be from 1 to 10, .* got 20"):
        knn_accuracy(train, test, k=20)
    with pytest.raises(ValueError, match=r"k must be from 1 to 10, .* got 0"):
        knn_accuracy(train, test, k=0)
    blank = Features(test.features, torch.full((5,), -1), test.ids)
    with pytest.raises(ValueError, match="no test sample has a label"):
        knn_accuracy(train, blank, k=1)
    with pytest.raises(ValueError, match="no training sample has a label"):
        knn_accuracy(blank, test, k=1)
    with pytest.raises(ValueError, match=r"with one d, got \(5, 3\) and \(10, 16\)"):
        nearest(torch.zeros(5, 3), train.features, 1)
    broken = train.features.clone()
    broken[3, 2], broken[3, 4], broken[7, 0] = torch.nan, torch.inf, torch.nan
    with pytest.raises(ValueError, match="3 of 160 values in 2 of 10 samples are NaN or Inf"):
        nearest(test.features, broken, 1)

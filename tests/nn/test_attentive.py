"""The attentive probe against a loop over samples, queries and heads."""

import json
import math

import pytest
import torch

from tests.nn.slow import same_with_gradients, slow_block
from torchjepa.nn import AttentiveClassifier, AttentivePooler, recompute_activations


def small_pooler(**changes):
    sizes = {"embed_dim": 12, "num_heads": 2, "depth": 2, "num_queries": 3, "init_std": 0.3, "seed": 1}
    return AttentivePooler(**(sizes | changes)).double()


def small_classifier(**changes):
    sizes = {"embed_dim": 12, "num_heads": 3, "depth": 2, "num_classes": 5, "init_std": 0.3, "seed": 1}
    return AttentiveClassifier(**(sizes | changes)).double()


def slow_pool(pooler, tokens):
    cross, samples = pooler.cross, []
    for sample in tokens:
        for block in pooler.blocks:
            sample = slow_block(block, sample, lambda i, j: True)
        keys, values = cross.kv(cross.norm1(sample)).chunk(2, dim=-1)
        rows = []
        for query in pooler.queries[0]:
            gathered = []
            for channels in torch.arange(12).chunk(cross.num_heads):
                scores = keys[:, channels] @ cross.q(query)[channels] / math.sqrt(len(channels))
                gathered.append(scores.softmax(dim=0) @ values[:, channels])
            row = query + torch.cat(gathered)
            rows.append(row + cross.mlp(cross.norm2(row)[None])[0])
        samples.append(torch.stack(rows))
    return torch.stack(samples)


def inputs():
    return torch.randn(2, 5, 12, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("num_queries", [1, 3])
def test_equals_a_loop_with_gradients(depth, num_queries):
    pooler, tokens = small_pooler(depth=depth, num_queries=num_queries), inputs()
    out = pooler(tokens)
    assert out.shape == (2, num_queries, 12)
    same_with_gradients(out, slow_pool(pooler, tokens), [tokens, *pooler.parameters()])


def test_logits_are_a_linear_map_of_the_one_query():
    probe, tokens = small_classifier(), inputs()
    wanted = slow_pool(probe.pooler, tokens)[:, 0] @ probe.linear.weight.T + probe.linear.bias
    same_with_gradients(probe(tokens), wanted, [tokens, *probe.parameters()])


def test_order_and_number_of_tokens_are_free():
    probe, tokens = small_classifier(), inputs()
    torch.testing.assert_close(probe(tokens[:, torch.randperm(5)]), probe(tokens))
    assert probe(tokens[:, :1]).shape == (2, 5)


@pytest.mark.parametrize("build", [small_pooler, small_classifier])
def test_config_and_seed(build):
    network = build(norm_eps=1e-6)
    again = type(network)(**json.loads(json.dumps(network.config)), init_std=0.3, seed=1).double()
    assert again.config == network.config
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in network.state_dict().items())
    other = build(seed=2).state_dict()
    assert not any(torch.equal(v, other[name]) for name, v in network.state_dict().items() if v.std() > 0)


def test_published_sizes():
    # 4 blocks at 1024 and at 1408 channels: about 50 and 95 million parameters.
    for dim, millions in ((1024, 50), (1408, 95)):
        with torch.device("meta"):
            pooler = AttentivePooler(embed_dim=dim)
        assert sum(p.numel() for p in pooler.parameters()) / 1e6 == pytest.approx(millions, abs=2)


def test_recomputing_changes_nothing():
    pooler, tokens = small_pooler(), inputs()
    results = []
    for enabled in (False, True):
        recompute_activations(pooler, enabled)
        out = pooler(tokens)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(pooler.parameters()))))
    assert all(torch.equal(kept, again) for kept, again in zip(*results))


def test_bfloat16_is_close():
    probe, tokens = small_classifier().float(), inputs().float()
    exact = probe(tokens)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = probe(tokens)
    assert (rough - exact).norm() < 0.05 * exact.norm()


def test_an_export_equals_the_network():
    probe, tokens = small_classifier(), inputs()
    torch.testing.assert_close(torch.export.export(probe, (tokens,)).module()(tokens), probe(tokens))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"num_heads": 5, "depth": 1},
            "num_heads must divide the dimension 12, got 5; choose one of its divisors",
        ),
        ({"num_heads": 0}, "num_heads must divide the dimension 12, got 0"),
        ({"depth": 0}, "depth must be at least 1, got 0"),
        ({"num_queries": 0}, "num_queries must be at least 1, got 0"),
    ],
)
def test_sizes_that_make_no_sense(changes, message):
    with pytest.raises(ValueError, match=message):
        small_pooler(**changes)


def test_no_classes():
    with pytest.raises(ValueError, match="num_classes must be at least 1, got 0"):
        small_classifier(num_classes=0)

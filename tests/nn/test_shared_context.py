"""The context is computed once, blind to the mask tokens; every block sees it and itself."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.nn.slow import place_of, same_with_gradients, slow_block, turn_matrix
from torchjepa.models import IJEPA
from torchjepa.nn import Predictor, SharedContextPredictor, ViT, recompute_activations, sincos_positions
from torchjepa.types import Grid

GRID = Grid(h=3, w=4)


def small_predictor(kind=SharedContextPredictor, **changes):
    sizes = {"encoder_dim": 10, "embed_dim": 16, "depth": 3, "num_heads": 2, "init_std": 0.3, "seed": 4}
    return kind(**(sizes | changes)).double()


def inputs(b=2, n_ctx=5, m=3, k=2):
    generator = torch.Generator().manual_seed(7)
    ids = torch.stack([torch.randperm(GRID.num_tokens, generator=generator) for _ in range(b)])
    targets = ids[:, n_ctx : n_ctx + m * k].reshape(b, m, k)
    context = torch.randn(b, n_ctx, 10, dtype=torch.float64, generator=generator)
    return context.requires_grad_(), ids[:, :n_ctx], targets


def slow_predict(predictor, context, context_ids, target_ids):
    is_rotary = predictor.config["positions"] != "wh"
    table = torch.zeros(12, 16) if is_rotary else sincos_positions(GRID, 16)
    n_ctx = context_ids.shape[1]
    samples = []
    for sample, blocks in enumerate(target_ids):
        predictions = []
        for block in blocks:
            seen = predictor.embed(context[sample]) + table[context_ids[sample]]
            tokens = torch.cat([seen, predictor.mask_token[0] + table[block]])
            ids = [*context_ids[sample].tolist(), *block.tolist()]
            turns = [turn_matrix(place_of(i, GRID), 8) for i in ids] if is_rotary else None
            for layer in predictor.blocks:
                tokens = slow_block(layer, tokens, lambda i, j: j < n_ctx or i >= n_ctx, turns)
            predictions.append(predictor.proj(predictor.norm(tokens[n_ctx:])))
        samples.append(torch.stack(predictions))
    return torch.stack(samples)


@pytest.mark.parametrize("positions", ["wh", "rope"])
@pytest.mark.parametrize("depth", [1, 2, 3])
def test_equals_a_masked_loop_over_samples_and_blocks(depth, positions):
    predictor = small_predictor(depth=depth, positions=positions)
    context, context_ids, target_ids = inputs()
    fast = predictor(context, context_ids, target_ids, GRID)
    slow = slow_predict(predictor, context, context_ids, target_ids)
    assert fast.shape == (2, 3, 2, 10)
    same_with_gradients(fast, slow, [context, *predictor.parameters()])


def test_a_block_does_not_depend_on_the_others():
    predictor = small_predictor()
    context, context_ids, target_ids = inputs()
    together = predictor(context, context_ids, target_ids, GRID)
    moved = target_ids.clone()
    moved[:, [0, 2]] = (moved[:, [0, 2]] + 1) % GRID.num_tokens
    torch.testing.assert_close(predictor(context, context_ids, moved, GRID)[:, 1], together[:, 1])
    torch.testing.assert_close(predictor(context, context_ids, target_ids[:, 1:2], GRID), together[:, 1:2])


@pytest.mark.parametrize("m", [1, 3])
def test_another_model_unless_the_context_is_never_updated(m):
    batch = inputs(m=m)
    for depth, equal in ((1, True), (2, False)):
        ours, plain = (small_predictor(kind, depth=depth) for kind in (SharedContextPredictor, Predictor))
        plain.load_state_dict(ours.state_dict())
        difference = (ours(*batch, GRID) - plain(*batch, GRID)).abs().max()
        assert (difference < 1e-12) == equal
        assert equal or difference > 1e-3


def test_weights_are_those_of_the_predictor():
    ours, plain = small_predictor(), small_predictor(Predictor)
    assert ours.config == plain.config
    theirs = plain.state_dict()
    assert list(ours.state_dict()) == list(theirs)
    assert all(torch.equal(value, theirs[name]) for name, value in ours.state_dict().items())


def test_recomputing_changes_nothing():
    predictor = small_predictor()
    batch = inputs()
    results = []
    for enabled in (False, True):
        recompute_activations(predictor, enabled)
        out = predictor(*batch, GRID)
        results.append((out, *torch.autograd.grad(out.square().sum(), list(predictor.parameters()))))
    assert all(torch.equal(kept, again) for kept, again in zip(*results))


def test_bfloat16_is_close():
    predictor = small_predictor().float()
    context, *ids = inputs()
    exact = predictor(context.float(), *ids, GRID)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = predictor(context.float(), *ids, GRID)
    assert (rough - exact).norm() < 0.03 * exact.norm()


def flops(kind, n_ctx, m, k):
    with torch.device("meta"):
        predictor = kind(encoder_dim=192, depth=6)
        context = torch.empty(1, n_ctx, 192)
        ids = torch.empty(1, n_ctx, dtype=torch.int64), torch.empty(1, m, k, dtype=torch.int64)
    with FlopCounterMode(display=False) as counter:
        predictor(context, *ids, Grid(h=14, w=14))
    return counter.get_total_flops()


@pytest.mark.parametrize(("n_ctx", "k", "share"), [(80, 33, 0.50), (55, 35, 0.57), (240, 30, 0.34)])
def test_flops_over_those_of_the_predictor(n_ctx, k, share):
    ours, plain = (flops(kind, n_ctx, 4, k) for kind in (SharedContextPredictor, Predictor))
    assert ours / plain == pytest.approx(share, abs=0.01)


def test_a_learner_takes_it_and_checks_its_width():
    encoder = ViT(image_size=32, patch_size=8, embed_dim=12, depth=1, num_heads=2)
    with pytest.raises(ValueError, match="takes tokens of 10 channels, the encoder gives 12"):
        IJEPA(encoder, small_predictor(), mask=lambda *_: None)


def test_errors_name_the_class():
    with pytest.raises(ValueError, match="SharedContextPredictor: depth must be at least 1, got 0"):
        small_predictor(depth=0)

"""One training step of V-JEPA and V-JEPA 2: the official code's numbers, and a float64 oracle tied to them."""

from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from tests.models import slow_vjepa as slow
from tests.nn.foreign import outputs, weights
from tests.nn.slow import place_of, turn_matrix
from torchjepa.ema import EMA, LinearMomentumSchedule
from torchjepa.energy import LpEnergy
from torchjepa.models import VJEPA, VJEPA2
from torchjepa.nn import Predictor, RotaryPositions, ViT
from torchjepa.types import Batch, Grid, Masks

PATCH = (2, 8, 8)
RELEASED = RotaryPositions(pairing="released")
FAMILIES = {
    "vjepa": (VJEPA, "jepa", "vjepa.pth.tar", "thw", {"encoder_dim": 48, "embed_dim": 24, "num_mask_tokens": 2}),
    "vjepa2": (VJEPA2, "vjepa2", "vjepa2.pt", RELEASED, {"encoder_dim": 32, "embed_dim": 32, "num_mask_tokens": 3}),
}  # fmt: skip
# The mask token of each of two masks, as released.
MASK_TOKENS = {"vjepa": (0, 1), "vjepa2": (0, 0)}


def fixed(masks, grid, batch_size, generator):
    return masks


def second_mask(num_tokens):
    """Other lengths than the fixture's: five tokens are seen, three predicted."""
    generator = torch.Generator().manual_seed(0)
    order = torch.rand(2, num_tokens, generator=generator).argsort(1)
    return order[:, :5].sort(1).values, order[:, 5:8].sort(1).values


def numpy_positions(grid, head_dim, table):
    if table is not None:
        return slow.Positions(table=table[0].double().numpy())
    places = [place_of(token, grid) for token in range(grid.num_tokens)]
    return slow.Positions(
        turns=np.stack([turn_matrix(place, head_dim, "released").numpy() for place in places])
    )


@pytest.fixture(scope="module", params=list(FAMILIES))
def case(request):
    """The learner with official weights in float64, the fixture's mask and another one, all for the oracle too."""
    kind, name, file, positions, sizes = FAMILIES[request.param]
    io, dim = outputs(name), sizes["encoder_dim"]
    states, tables = zip(*(weights(file, part) for part in ("encoder", "target_encoder", "predictor")))
    vit = ViT(patch_size=PATCH, embed_dim=dim, depth=2, num_heads=2, positions=positions)
    predictor = Predictor(depth=2, num_heads=2, positions=positions, **sizes)
    grid = vit.grid(tuple(io["clips"].shape[2:]))
    pairs = [(io["context"], io["target"]), second_mask(grid.num_tokens)]
    samplers = [partial(fixed, Masks(context, target[:, None])) for context, target in pairs]
    model = kind(vit, predictor, mask=samplers)
    for part, state in zip((model.encoder, model.target_encoder, model.predictor), states):
        part.load_state_dict(state)
    clips = io["clips"].double()
    dims = (dim, tables[0]), (sizes["embed_dim"], tables[2])
    return SimpleNamespace(
        family=request.param,
        io=io,
        grid=grid,
        model=model.double(),
        batch=Batch((clips,), torch.arange(2), torch.full((2,), -1)),
        weights=[{name: value.double().numpy() for name, value in state.items()} for state in states],
        clips=clips.numpy(),
        masks=[(context.numpy(), target.numpy()) for context, target in pairs],
        positions=[numpy_positions(grid, width // 2, table) for width, table in dims],
    )


def of_all(case, weights_of, ids):
    rows = zip(case.clips, ids)
    return np.stack([slow.encode(weights_of, clip, row, PATCH, case.positions[0]) for clip, row in rows])


def wanted(case):
    every = np.tile(np.arange(case.grid.num_tokens), (2, 1))
    return slow.layer_norm(of_all(case, case.weights[1], every), eps=1e-5)


def slow_loss(case, encoder, predictor, targets):
    tokens = MASK_TOKENS[case.family]
    return slow.masked_loss(
        encoder, predictor, targets, case.clips, case.masks, tokens, PATCH, case.positions
    )


def close(ours, theirs, atol=1e-5):
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=0, atol=atol)


def test_the_oracle_has_the_official_numbers(case):
    io, (encoder, target_encoder, predictor) = case.io, case.weights
    every = np.tile(np.arange(case.grid.num_tokens), (2, 1))
    close(of_all(case, encoder, every), io["encoder_full"])
    close(of_all(case, target_encoder, every), io["target_encoder_full"])
    context_ids, target_ids = case.masks[0]
    context = of_all(case, encoder, context_ids)
    close(context, io["encoder_context"])
    for index in (0, 1 if case.family == "vjepa" else 2):
        rows = zip(context, context_ids, target_ids)
        out = [slow.predict(predictor, *row, case.positions[1], index) for row in rows]
        close(out, io[f"predictor_out_mask{index}"])
    if "loss_l1" in io:
        targets = np.stack([tokens[ids] for tokens, ids in zip(wanted(case), target_ids)])
        close(targets, io["targets"])
        close(np.abs(io["predictor_out_mask0"].numpy() - targets).mean(), io["loss_l1"])


def test_the_loss_of_the_fixtures_mask_is_the_official_one(case):
    model, io = case.model, case.io
    tokens = sorted(set(MASK_TOKENS[case.family]))
    loss = type(model)(
        model.encoder, model.predictor, mask=[model.masks[0]] * len(tokens), mask_tokens=tokens
    )
    loss.target_encoder = model.target_encoder
    targets = io["target_encoder_full"]
    targets = torch.nn.functional.layer_norm(targets, targets.shape[-1:])
    targets = torch.stack([each[ids] for each, ids in zip(targets, io["target"])])
    official = torch.stack([(io[f"predictor_out_mask{i}"] - targets).abs().mean() for i in tokens]).mean()
    close(loss.loss(case.batch, 0).total.detach(), official)
    if case.family == "vjepa":
        close((io["predictor_out_mask0"] - targets).abs().mean(), io["loss_l1"])


def test_loss_and_every_gradient_equal_the_oracles(case):
    targets = wanted(case)
    encoder, _, predictor = case.weights
    loss = case.model.loss(case.batch, 0)
    close(loss.total.detach(), slow_loss(case, encoder, predictor, targets), 1e-9)
    case.model.zero_grad()
    loss.total.backward()
    generator, step = np.random.default_rng(0), 1e-6
    for position, part in ((0, case.model.encoder), (1, case.model.predictor)):
        for name, parameter in part.named_parameters():
            direction = generator.standard_normal(parameter.shape)
            ends = []
            for sign in (1, -1):
                moved = [dict(encoder), dict(predictor)]
                moved[position][name] = moved[position][name] + sign * step * direction
                ends.append(slow_loss(case, *moved, targets))
            expected = (ends[0] - ends[1]) / (2 * step)
            ours = float((parameter.grad.numpy() * direction).sum())
            assert ours == pytest.approx(expected, rel=1e-5, abs=1e-8), name


def test_the_target_encoder_moves_as_released(case):
    model, momentum = case.model, {"vjepa": 0.998, "vjepa2": 0.99925}[case.family]
    before = {name: value.clone() for name, value in model.target_encoder.state_dict().items()}
    try:
        model.after_step(7)
        for name, value in model.target_encoder.state_dict().items():
            expected = momentum * before[name] + (1 - momentum) * model.encoder.state_dict()[name]
            close(value, expected, 1e-12)
    finally:
        model.target_encoder.load_state_dict(before)
    assert model.scheduled(7) == {"momentum": momentum}
    assert model.energy == LpEnergy(p=1.0)


def test_vjepas_momentum_rises_to_one():
    ema = EMA(0.998, LinearMomentumSchedule(0.998, total_steps=4))
    assert [ema.get_momentum(step) for step in (0, 2, 4)] == pytest.approx([0.998, 0.999, 1.0])


@pytest.mark.parametrize("kind", [VJEPA, VJEPA2])
def test_the_masks_are_v_jepas_unless_others_are_given(kind):
    vit = ViT(patch_size=PATCH, embed_dim=12, depth=1, num_heads=1)
    predictor = Predictor(
        encoder_dim=12, embed_dim=12, depth=1, num_heads=1, positions="thw", num_mask_tokens=2
    )
    model = kind(vit, predictor)
    clips = torch.randn(2, 3, 4, 64, 64, generator=torch.Generator().manual_seed(0))
    batch = Batch((clips,), torch.arange(2), torch.full((2,), -1))
    short, long = (model.draw_masks(Grid(t=2, h=8, w=8), batch, 0, index=index) for index in (0, 1))
    assert short.targets.shape[2] < long.targets.shape[2]
    assert model.mask_tokens == ((0, 1) if kind is VJEPA else (0, 0))
    model.loss(batch, 0).total.backward()
    asked = model.predictor.mask_token.grad.abs().sum((1, 2)) > 0
    assert asked.tolist() == [True, kind is VJEPA]

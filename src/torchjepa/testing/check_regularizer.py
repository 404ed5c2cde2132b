"""The contract check of a collapse regularizer, for the built-in ones and a user's own."""

from __future__ import annotations

import copy
import dataclasses

import torch
from torch import Tensor

from torchjepa import dist, rng
from torchjepa.collapse import CollapseRegularizer, named_terms
from torchjepa.testing.contract import require, require_value_error
from torchjepa.testing.ranks import run_on_ranks


def check_regularizer(regularizer: CollapseRegularizer, *, ranks: int = 1) -> None:
    """Check that an object keeps the contract of a collapse regularizer.

    Named terms that add up to the loss, a collapsed batch dearer than a spread one, independence of the order
    of the samples, the right and finite gradient in both views, float32 or wider whatever the autocast state,
    NaN refused or kept and never hidden, shapes that differ refused; on several processes, the joined batch's
    value and gradient. A regularizer with state (a counter, say) must give one value from one state: each call
    is made on a copy of the object.

    Args:
        regularizer: the object under test, with `compute(*views)` and `loss(*views)`; it is given two views.
        ranks: number of processes on which to compare value and gradient with one process on the joined
            batch, with other data, another mean and another batch size on each; 1, the default, leaves this
            out. The object is pickled.

    Raises:
        AssertionError: a requirement is broken; the message says which.
        ValueError: ranks is above 1 and the object cannot be pickled.
    """
    _check_terms(regularizer)
    _check_purpose(regularizer)
    _check_gradient(regularizer)
    _check_edges(regularizer)
    _check_precision(regularizer)
    _check_refusals(regularizer)
    if ranks > 1:
        _check_ranks(regularizer, ranks)


def _views(n: int, d: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    generator = rng.generator(0, "check_regularizer")
    base, a, b = torch.randn(3, n, d, generator=generator, dtype=torch.float64)
    # Correlated dimensions of unequal scale, so that every term has something to say.
    mixed = base @ torch.randn(d, d, generator=generator, dtype=torch.float64) / d
    return (mixed + 0.1 * a).to(dtype), (mixed + 0.1 * b).to(dtype)


def _copied(regularizer: CollapseRegularizer) -> CollapseRegularizer:
    return copy.deepcopy(regularizer)


def _check_terms(regularizer: CollapseRegularizer) -> None:
    z_a, z_b = _views(12, 6)
    before = z_a.clone(), z_b.clone()
    terms = _copied(regularizer).compute(z_a, z_b)
    require(
        dataclasses.is_dataclass(terms) and callable(getattr(terms, "total", None)),
        regularizer,
        f"compute must give a dataclass of named terms with total(), got {type(terms).__name__}.",
    )
    scalars = named_terms(terms)
    for name, value in scalars.items():
        require(
            value.shape == () and bool(value.isfinite()),
            regularizer,
            f"the term {name} must be a finite scalar, got {value}.",
        )
    total = torch.stack(list(scalars.values())).sum()
    require(
        torch.allclose(terms.total(), total),
        regularizer,
        f"total() must be the sum of the terms, weights included: {total:.6g}, got {terms.total():.6g}.",
    )
    loss = _copied(regularizer).loss(z_a, z_b)
    require(
        loss.shape == () and torch.allclose(loss, total),
        regularizer,
        f"loss must be the total of compute, {total:.6g}, got {loss}.",
    )
    require(
        torch.equal(z_a, before[0]) and torch.equal(z_b, before[1]),
        regularizer,
        "the inputs were changed in place.",
    )
    require(
        torch.equal(loss, _copied(regularizer).loss(z_a, z_b)),
        regularizer,
        "two calls from one state give two values.",
    )


def _check_purpose(regularizer: CollapseRegularizer) -> None:
    generator = rng.generator(0, "check_regularizer", "spread")
    noise = torch.randn(64, 8, generator=generator, dtype=torch.float64)
    spread = torch.linalg.qr(noise - noise.mean(0)).Q * 64**0.5
    point = spread[:1].expand(64, 8).contiguous()
    good, bad = (_copied(regularizer).loss(z, z) for z in (spread, point))
    require(
        bool(good < bad),
        regularizer,
        f"a batch collapsed to a point costs {bad:.6g}, a white one {good:.6g}: nothing keeps the "
        "representation from collapsing.",
    )
    z_a, z_b = _views(12, 6)
    order = torch.randperm(12, generator=generator)
    require(
        torch.allclose(
            _copied(regularizer).loss(z_a, z_b), _copied(regularizer).loss(z_a[order], z_b[order])
        ),
        regularizer,
        "the loss must not depend on the order of the samples.",
    )


def _check_gradient(regularizer: CollapseRegularizer) -> None:
    z_a, z_b = (z.requires_grad_() for z in _views(6, 4))
    loss = _copied(regularizer).loss(z_a, z_b)
    require(loss.requires_grad, regularizer, "no gradient reaches the views; was something detached?")
    grads = torch.autograd.grad(loss, (z_a, z_b), allow_unused=True)
    for name, grad in zip(("z_a", "z_b"), grads):
        require(
            grad is not None and bool(grad.any()),
            regularizer,
            f"no gradient reaches {name}; both views must be trained.",
        )
    try:
        torch.autograd.gradcheck(lambda a, b: _copied(regularizer).loss(a, b), (z_a, z_b))
    except RuntimeError as error:
        require(False, regularizer, f"the gradient is not the derivative of the loss: {error}")


def _check_edges(regularizer: CollapseRegularizer) -> None:
    z_a, z_b = _views(5, 4)
    for what, a, b in (
        ("one dimension", z_a[:, :1], z_b[:, :1]),
        ("a constant batch", torch.ones_like(z_a), torch.ones_like(z_b)),
        ("a zero batch", torch.zeros_like(z_a), torch.zeros_like(z_b)),
    ):
        leaf = a.clone().requires_grad_()
        loss = _copied(regularizer).loss(leaf, b)
        (grad,) = torch.autograd.grad(loss, leaf)
        require(
            bool(loss.isfinite()) and bool(grad.isfinite().all()),
            regularizer,
            f"value and gradient of {what} must be finite, got a loss of {loss.item():.6g}.",
        )
    for what, a, b in (("one sample", z_a[:1], z_b[:1]), *_with_nan(z_a, z_b)):
        try:
            loss = _copied(regularizer).loss(a, b)
        except ValueError:
            continue
        kept = bool(loss.isfinite()) if what == "one sample" else bool(loss.isnan())
        require(
            kept,
            regularizer,
            f"{what} must be a ValueError, or {'finite' if what == 'one sample' else 'stay NaN'}; got {loss}.",
        )


def _with_nan(z_a: Tensor, z_b: Tensor) -> list[tuple[str, Tensor, Tensor]]:
    bad = z_a.clone()
    bad[0, 0] = float("nan")
    return [("NaN in the first view", bad, z_b), ("NaN in the second view", z_b, bad)]


def _check_precision(regularizer: CollapseRegularizer) -> None:
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        z_a, z_b = _views(12, 6, dtype)
        wide = torch.promote_types(dtype, torch.float32)
        exact = _values(regularizer, z_a.double(), z_b.double())
        plain = _values(regularizer, z_a, z_b)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = _values(regularizer, z_a, z_b)
        for name, value in exact.items():
            for where, got in (("", plain[name]), (" under autocast", inside[name])):
                require(
                    got.dtype == wide,
                    regularizer,
                    f"{dtype} inputs{where} must give {wide}, got {got.dtype} for {name}.",
                )
                require(
                    torch.allclose(got.double(), value, rtol=1e-4, atol=1e-6),
                    regularizer,
                    f"{dtype} inputs{where} must be computed in float32 or wider: {name} is {got:.6g}, "
                    f"not {value:.6g}.",
                )


def _values(regularizer: CollapseRegularizer, z_a: Tensor, z_b: Tensor) -> dict[str, Tensor]:
    return {
        **named_terms(_copied(regularizer).compute(z_a, z_b)),
        "loss": _copied(regularizer).loss(z_a, z_b),
    }


def _check_refusals(regularizer: CollapseRegularizer) -> None:
    z_a, z_b = _views(6, 4)
    for what, a, b in (
        ("another number of samples in z_b", z_a, z_b[:1]),
        ("another width of z_b", z_a, z_b[:, :1]),
        ("views of four axes", z_a[None, None], z_b[None, None]),
        ("integer views", z_a.long(), z_b.long()),
        ("an empty batch", z_a[:0], z_b[:0]),
    ):
        require_value_error(regularizer, what, lambda a=a, b=b: _copied(regularizer).loss(a, b))


def _check_ranks(regularizer: CollapseRegularizer, ranks: int) -> None:
    sizes = [5 + 3 * rank for rank in range(ranks)]
    x_a, x_b = _views(sum(sizes), 6)
    means = torch.arange(ranks, dtype=torch.float64).repeat_interleave(torch.tensor(sizes)).unsqueeze(1)
    x_a, x_b = x_a + means, x_b + means
    weight = _views(6, 4)[0]
    value, gradient = _loss_and_gradient(regularizer, x_a, x_b, weight)
    outcomes = run_on_ranks(_on_rank, ranks, regularizer, x_a, x_b, weight, sizes)
    for rank, (loss, _) in enumerate(outcomes):
        require(
            torch.allclose(loss, value, rtol=1e-10),
            regularizer,
            f"rank {rank} of {ranks} has loss {loss:.12g}, one process on the joined batch {value:.12g}; "
            "take sums over torchjepa.dist.all_reduce_sum and divide by the global count.",
        )
    averaged = torch.stack([grad for _, grad in outcomes]).mean(0)
    error = float((averaged - gradient).norm() / gradient.norm())
    require(
        error < 1e-10,
        regularizer,
        f"averaged over {ranks} ranks the gradient of a shared weight is off by {error:.3g} of its norm from "
        "one process on the joined batch; the sums across ranks must be seen by autograd.",
    )


def _on_rank(
    regularizer: CollapseRegularizer, x_a: Tensor, x_b: Tensor, weight: Tensor, sizes: list[int]
) -> tuple[Tensor, Tensor]:
    rank = dist.rank()
    return _loss_and_gradient(regularizer, x_a.split(sizes)[rank], x_b.split(sizes)[rank], weight)


def _loss_and_gradient(
    regularizer: CollapseRegularizer, x_a: Tensor, x_b: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    leaf = weight.clone().requires_grad_()
    loss = _copied(regularizer).loss(x_a @ leaf, x_b @ leaf)
    (grad,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), grad

"""How a label is earned: by accuracy against the untrained encoder, or by the defect itself.

Nothing here comes from the doctor, and the bounds were chosen without asking it.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.doctor_zoo.case import Material, Proof

LEAD = 0.10  # accuracy above the untrained encoder's that counts as having learned
Judge = Callable[[Material], Proof]


def learned(material: Material) -> Proof:
    """kNN or linear accuracy at least 10 points above the untrained encoder's, and neither below it."""
    s = material.scores
    assert s is not None
    if s.knn is None or s.linear is None:
        return Proof("diverged", False)
    leads = s.knn - s.untrained_knn, s.linear - s.untrained_linear
    return Proof(f"accuracy up {100 * max(leads):.0f} points", max(leads) >= LEAD and min(leads) >= 0)


def constructed(material: Material) -> Proof:
    """A synthetic set is what it was drawn to be."""
    return Proof("by construction", True)


def constant(name: str, bound: float = 0.05) -> Judge:
    """Samples differ by less than a twentieth of their length: deviation over root mean square."""

    def judge(material: Material) -> Proof:
        x = material.features[name].double().flatten(0, -2)
        if not bool(torch.isfinite(x).all()):
            return Proof(f"{name} not finite", True)
        share = (_spread(x) / x.square().sum(1).mean()).sqrt().item() if bool(x.any()) else 0.0
        return Proof(f"{name}: deviation / length {share:.2g} (< {bound})", share < bound)

    return judge


def narrow(name: str, most: int = 4) -> Judge:
    """Four directions or fewer hold 95 % of the variance: half of the nine that ten classes need."""

    def judge(material: Material) -> Proof:
        x = material.features[name].double()
        values = torch.linalg.svdvals(x - x.mean(0)).square()
        needed = int((values.cumsum(0) / values.sum() < 0.95).sum()) + 1
        text = f"{name}: {needed} of {x.shape[1]} directions hold 95 % (<= {most})"
        return Proof(text, needed <= most)

    return judge


def vanished(bound: float = 0.01) -> Judge:
    """The distance between two views' embeddings has gone to a hundredth: nothing is left to tell samples apart by."""

    def judge(material: Material) -> Proof:
        values = [row["loss/invariance"] for row in material.history]
        ratio = values[-1] / values[0]
        return Proof(f"squared distance of views x {ratio:.1g} (< {bound})", ratio < bound)

    return judge


def alike(name: str, bound: float = 0.10) -> Judge:
    """Of the variance of `[b, n, d]` less than a tenth lies within a sample (over its tokens, or in time)."""

    def judge(material: Material) -> Proof:
        x = material.features[name].double()
        share = (_spread(x - x.mean(1, keepdim=True), centre=False) / _spread(x)).item()
        return Proof(
            f"{name}: {100 * share:.2g} % of the variance within a sample (< {100 * bound:g})", share < bound
        )

    return judge


def copies(bound: float = 0.10) -> Judge:
    """The prediction lies ten times closer to what it could copy than the target does."""

    def judge(material: Material) -> Proof:
        prediction, target, context = (
            material.features[k].double() for k in ("prediction", "target", "context")
        )
        ratio = ((prediction - context).square().sum() / (target - context).square().sum()).item()
        return Proof(f"distance to the copy / motion {ratio:.2g} (< {bound})", ratio < bound)

    return judge


def drifts(figure: str = "health/target_std", factor: float = 1.5) -> Judge:
    """The spread of the targets still grows or shrinks by half or more over the second half of the run."""

    def judge(material: Material) -> Proof:
        stds = [row[figure] for row in material.history if row.get(figure)]
        ratio = stds[-1] / stds[len(stds) // 2]
        return Proof(f"{figure} x {ratio:.2g} in the second half", max(ratio, 1 / ratio) >= factor)

    return judge


def apart(bound: float = 4.0) -> Judge:
    """Online tokens and target tokens differ in length by a factor."""

    def judge(material: Material) -> Proof:
        online, target = (material.features[name].double() for name in ("tokens", "target_tokens"))
        ratio = (online.square().mean() / target.square().mean()).sqrt().item()
        return Proof(f"online / target scale {ratio:.2g} (> {bound:g})", ratio > bound)

    return judge


def early(material: Material) -> Proof:
    """The run has been stopped within its warm-up."""
    rates = [row["lr"] for row in material.history]
    return Proof(f"{material.history[-1]['step'] + 1} steps, learning rate rising", rates == sorted(rates))


def few(material: Material) -> Proof:
    """Fewer samples than a quarter of the dimensions."""
    n, d = material.features["encoder"].shape
    return Proof(f"{n} samples of {d} dimensions", n < d / 4)


def both(*judges: Judge) -> Judge:
    """All of several proofs."""

    def judge(material: Material) -> Proof:
        proofs = [each(material) for each in judges]
        return Proof("; ".join(proof.text for proof in proofs), all(proof.holds for proof in proofs))

    return judge


def unlearned(material: Material) -> Proof:
    """Accuracy at most that of the untrained encoder (two points of chance)."""
    s = material.scores
    assert s is not None
    if s.knn is None or s.linear is None:
        return Proof("diverged", True)
    lead = min(s.knn - s.untrained_knn, s.linear - s.untrained_linear)
    return Proof(f"accuracy {100 * lead:+.0f} points", lead <= 0.02)


def _spread(x: Tensor, centre: bool = True) -> Tensor:
    x = x.flatten(0, -2)
    return ((x - x.mean(0)) if centre else x).square().sum(1).mean()

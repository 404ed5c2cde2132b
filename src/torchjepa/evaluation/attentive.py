"""The attentive probe: a learned query over frozen tokens, its learning rate and weight decay swept at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count, product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from torchjepa.evaluation.attentive_heads import joint_logits
from torchjepa.evaluation.tokens import Tokens
from torchjepa.nn import AttentiveClassifier
from torchjepa.nn.init import FanInStd
from torchjepa.rng import generator
from torchjepa.schedules import CosineSchedule

LEARNING_RATES = (5e-3, 3e-3, 1e-3, 3e-4, 1e-4)
WEIGHT_DECAYS = (0.01, 0.4)
_SELECTION_SAMPLES = 3_000  # enough to rank ten pairs, few enough for a sweep of seconds
_HELD_OUT = 0.2
_LEAST_UPDATES = 300  # 20 passes over a few hundred samples would end before attention has formed
_JUDGED_AT_ONCE = 256


@dataclass(frozen=True)
class Trial:
    """One pair of the sweep.

    Args:
        lr: learning rate at the start.
        weight_decay: of all parameters.
        accuracy: on the held-out part of the training samples, 0 to 1.
        loss: mean cross-entropy there.
    """

    lr: float
    weight_decay: float
    accuracy: float
    loss: float


@dataclass(frozen=True)
class AttentiveProbe:
    """A fitted attentive classifier; label(tokens) = classes[argmax network(tokens)].

    Args:
        network: maps tokens `[b, n, d]` to logits.
        classes: label of each logit, int64 `[c]`.
        lr: the chosen learning rate.
        weight_decay: the chosen weight decay.
        sweep: what the choice rests on; empty where there was nothing to choose from or no sample to hold out.
    """

    network: AttentiveClassifier
    classes: Tensor
    lr: float
    weight_decay: float
    sweep: tuple[Trial, ...]

    @torch.no_grad()
    def predict(self, tokens: Tensor) -> Tensor:
        """Labels, int64 `[b]`, of tokens `[b, n, d]`."""
        device = self.network.linear.weight.device
        parts = [
            self.network(part.to(device).float()).argmax(dim=1).cpu()
            for part in tokens.split(_JUDGED_AT_ONCE)
        ]
        return self.classes[torch.cat(parts)]


@dataclass(frozen=True)
class AttentiveOutcome:
    """What `attentive_accuracy` found.

    Args:
        accuracy: on the test samples, 0 to 1.
        probe: the fitted probe, with the chosen learning rate and weight decay and the table of the sweep.
    """

    accuracy: float
    probe: AttentiveProbe


@dataclass(frozen=True, kw_only=True)
class AttentiveSettings:
    """How an attentive probe is trained.

    Args:
        lrs: learning rates to choose from, V-JEPA 2's five.
        weight_decays: weight decays to choose from; the extremes of V-JEPA 2's (0.01, 0.1, 0.4, 0.8) but for the last.
        depth: 1 as in V-JEPA; with 4, as in V-JEPA 2, three transformer blocks go first.
        num_heads: attention heads, a divisor of d; by default the largest up to 16 that leaves each 16 channels,
            which is V-JEPA's 16 from d = 256 on.
        epochs: passes over the training samples, 20 (V-JEPA 2); as many as make 300 updates where they are few.
        batch_size: samples of an update.
        seed: keys the held-out part, the initial weights and the order of the samples.
        device: where the probe is trained.

    Raises:
        ValueError: nothing to choose from, or a number out of range.
    """

    lrs: Sequence[float] = LEARNING_RATES
    weight_decays: Sequence[float] = WEIGHT_DECAYS
    depth: int = 1
    num_heads: int | None = None
    epochs: int = 20
    batch_size: int = 64
    seed: int = 0
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        for name, values, least in (("lrs", self.lrs, 0.0), ("weight_decays", self.weight_decays, -1e-30)):
            if not values or not all(least < value < math.inf for value in values):
                raise ValueError(f"AttentiveSettings: {name} must be positive numbers, got {tuple(values)}.")
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"AttentiveSettings: {name} must be at least 1, got {getattr(self, name)}.")

    def build(self, embed_dim: int, num_classes: int) -> AttentiveClassifier:
        """A new probe; its weights are a function of the seed alone."""
        return AttentiveClassifier(
            embed_dim=embed_dim,
            num_classes=num_classes,
            num_heads=self.num_heads or _default_heads(embed_dim),
            depth=self.depth,
            init_std=FanInStd(),
            seed=self.seed,
        ).to(self.device)


def fit_attentive(train: Tokens, settings: AttentiveSettings = AttentiveSettings()) -> AttentiveProbe:
    """Fit an attentive probe; learning rate and weight decay are chosen on a fifth of the training samples.

    min over the probe of the mean cross-entropy, by AdamW with a cosine to 0 and no warm-up. As in V-JEPA 2 all
    parameters decay, biases and norms too, and nothing is clipped. All pairs of the sweep start from the same weights
    and see the same batches, in one pass over the tokens, on at most 3,000 training samples (4/5 fit, 1/5 held out, of
    each class alike); the pair with the best accuracy on the held-out part, the lower cross-entropy where several have
    it, then fits all training samples from the start. The official code instead reports the best head and epoch on the
    test samples; and it augments, where cached tokens are always the same. A function of tokens and settings alone.

    Args:
        train: the labelled samples; those without a label are left out.
        settings: the sweep and the training.

    Raises:
        ValueError: no training sample has a label, or a token is not finite.
    """
    rows = train.labelled
    if len(rows) == 0:
        raise ValueError(
            "attentive probe: no training sample has a label (all are -1); there is nothing to fit."
        )
    _require_finite(train.tokens, rows)
    classes, columns = train.labels[rows].unique(return_inverse=True)
    fit = _Fit(train.tokens, rows, columns, len(classes), settings)
    lr, weight_decay, sweep = _choose(fit)
    (network,) = fit.train(torch.arange(len(rows)), [(lr, weight_decay)])
    return AttentiveProbe(network, classes, lr, weight_decay, sweep)


def attentive_accuracy(
    train: Tokens, test: Tokens, settings: AttentiveSettings = AttentiveSettings()
) -> AttentiveOutcome:
    """Share of test samples that an attentive probe on frozen tokens gets right, 0 to 1; see `fit_attentive`.

    The test samples are looked at once, by the one probe that was chosen without them.

    Args:
        train: the samples to fit on.
        test: the samples that are judged; in both, those without a label are left out.
        settings: the sweep and the training.

    Raises:
        ValueError: train or test has no label, the widths differ, or a token is not finite.
    """
    rows = test.labelled
    if len(rows) == 0:
        raise ValueError(
            "attentive probe: no test sample has a label (all are -1); there is nothing to judge."
        )
    if test.tokens.shape[2] != train.tokens.shape[2]:
        raise ValueError(
            f"attentive probe: train has tokens of {train.tokens.shape[2]} channels and test {test.tokens.shape[2]}."
        )
    _require_finite(test.tokens, rows)
    probe = fit_attentive(train, settings)
    right = [probe.predict(test.tokens[part]) == test.labels[part] for part in rows.split(_JUDGED_AT_ONCE)]
    return AttentiveOutcome(torch.cat(right).double().mean().item(), probe)


@dataclass(frozen=True)
class _Fit:
    tokens: Tensor
    rows: Tensor  # of `tokens`, those with a label
    columns: Tensor  # the class of each
    num_classes: int
    settings: AttentiveSettings

    def train(self, chosen: Tensor, pairs: Sequence[tuple[float, float]]) -> list[AttentiveClassifier]:
        """A probe for each pair of learning rate and weight decay, all trained on the chosen of `rows`."""
        settings, dim = self.settings, self.tokens.shape[2]
        heads = [settings.build(dim, self.num_classes) for _ in pairs]
        groups: list[dict[str, Any]] = [
            {"params": list(head.parameters()), "lr": lr, "weight_decay": decay, "peak": lr}
            for head, (lr, decay) in zip(heads, pairs)
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        per_epoch = -(-len(chosen) // settings.batch_size)
        epochs = max(settings.epochs, -(-_LEAST_UPDATES // per_epoch))
        schedule = CosineSchedule(start=1.0, final=0.0, total_steps=epochs * per_epoch)
        steps = count()
        for epoch in range(epochs):
            for batch in self._batches(chosen, epoch, per_epoch):
                share = schedule(next(steps))
                for group in optimizer.param_groups:
                    group["lr"] = group["peak"] * share
                optimizer.zero_grad()
                # A sum: no head's gradient depends on how many there are.
                self._losses(heads, batch).mean(dim=1).sum().backward()
                optimizer.step()
        return heads

    def _batches(self, chosen: Tensor, epoch: int, num: int) -> tuple[Tensor, ...]:
        order = generator(self.settings.seed, "attentive-probe", "order", epoch)
        return chosen[torch.randperm(len(chosen), generator=order)].tensor_split(num)

    def _losses(self, heads: Sequence[AttentiveClassifier], chosen: Tensor) -> Tensor:
        logits, wanted = self._logits(heads, chosen)
        return F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none").view(wanted.shape)

    def _logits(self, heads: Sequence[AttentiveClassifier], chosen: Tensor) -> tuple[Tensor, Tensor]:
        device = self.settings.device
        tokens = self.tokens[self.rows[chosen]].to(device).float()
        return joint_logits(heads, tokens), self.columns[chosen].to(device).expand(len(heads), -1)

    @torch.no_grad()
    def judge(self, heads: Sequence[AttentiveClassifier], held: Tensor) -> tuple[Tensor, Tensor]:
        """Accuracy and mean cross-entropy of each probe on the held of `rows`."""
        right, loss = 0, 0
        for part in held.split(_JUDGED_AT_ONCE):
            logits, wanted = self._logits(heads, part)
            right = right + (logits.argmax(dim=2) == wanted).double().sum(dim=1)
            losses = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), reduction="none")
            loss = loss + losses.double().view(wanted.shape).sum(dim=1)
        return torch.as_tensor(right) / len(held), torch.as_tensor(loss) / len(held)


def _choose(fit: _Fit) -> tuple[float, float, tuple[Trial, ...]]:
    settings = fit.settings
    pairs = list(product(settings.lrs, settings.weight_decays))
    order = torch.randperm(len(fit.rows), generator=generator(settings.seed, "attentive-probe", "held out"))
    order = order[:_SELECTION_SAMPLES]
    is_held = stratified(fit.columns[order], _HELD_OUT)
    if len(pairs) == 1 or not bool(is_held.any()) or fit.num_classes == 1:
        return *pairs[len(pairs) // 2], ()
    heads = fit.train(order[~is_held], pairs)
    found = zip(pairs, *(values.tolist() for values in fit.judge(heads, order[is_held])))
    sweep = tuple(Trial(*pair, accuracy=accuracy, loss=loss) for pair, accuracy, loss in found)
    # A head that diverged may still name the commonest class.
    best = max(sweep, key=lambda trial: (math.isfinite(trial.loss), trial.accuracy, -trial.loss))
    return best.lr, best.weight_decay, sweep


def stratified(labels: Tensor, share: float) -> Tensor:
    """Which samples to hold out so that each class gives its share, rounded: the first ones of each.

    Args:
        labels: int64 `[n]`, in random order.
        share: of each class, 0 to 1.

    Returns:
        bool `[n]`.
    """
    _, columns, counts = labels.unique(return_inverse=True, return_counts=True)
    order = columns.argsort(stable=True)
    rank = torch.empty_like(order)
    starts = (counts.cumsum(0) - counts).repeat_interleave(counts)
    rank[order] = torch.arange(len(labels)) - starts
    return rank < (share * counts).round()[columns]


def _default_heads(dim: int) -> int:
    most = max(1, min(16, dim // 16))
    return max(heads for heads in range(1, most + 1) if dim % heads == 0)


def _require_finite(tokens: Tensor, rows: Tensor) -> None:
    for part in rows.split(_JUDGED_AT_ONCE):
        bad = ~torch.isfinite(tokens[part]).flatten(1).all(dim=1)
        if bool(bad.any()):
            raise ValueError(
                f"attentive probe: tokens of sample {int(part[bad][0])} are NaN or Inf; the encoder has diverged: "
                "judge an earlier checkpoint."
            )

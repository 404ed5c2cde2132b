"""The gradient of the joined batch from micro-batches: embed, take the joint loss once, go backward (GradCache)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any, TypeVar

import torch
from torch import Tensor

from torchjepa.collapse.base import CollapseRegularizer, RegularizerTerms

Views = tuple[Tensor, ...]
T = TypeVar("T")


def accumulate_gradients(
    regularizer: CollapseRegularizer,
    embed: Callable[[T], Views | Tensor],
    micro_batches: Iterable[T],
    *,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> RegularizerTerms:
    """Add to the parameters' gradients that of L = regularizer(e(x_1, ..., x_m)), the micro-batches x_i joined.

    With the gradient g_i of L with respect to the embeddings e(x_i), taken once for all micro-batches, the gradient
    of every parameter is that of sum_i <e(x_i), g_i> (GradCache, Gao et al. 2021). `embed` is called twice for each
    micro-batch, first without graph: one more forward pass of everything, and the activations of one micro-batch in
    memory at a time. torch's random state is put back between the two, so that dropout drops the same; other state
    moves twice (running statistics), and a batch norm inside `embed` standardises one micro-batch.

        terms = accumulate_gradients(VICReg(), lambda x: (model(x[0]), model(x[1])), micro_batches)
        optimizer.step()

    On several processes the regularizer sees the micro-batches of all. Let `embed` call the bare module, or all of it
    run inside DDP's `no_sync()`, and average the gradients over the processes afterwards:

        for parameter in model.parameters():
            torch.distributed.all_reduce(parameter.grad.div_(torch.distributed.get_world_size()))

    Args:
        regularizer: any; called once.
        embed: a micro-batch to the tuple of its views, each `[b, d]` or `[b, t, d]` (a tensor is one view), with
            autocast inside, if any.
        micro_batches: of any sizes; all inputs are held until the end.
        backward: does `loss.backward()`; with a GradScaler `lambda loss: scaler.scale(loss).backward()`.

    Returns:
        The regularizer's terms of the joined batch, detached.

    Raises:
        ValueError: there is no micro-batch, `embed` gives other numbers of views, or what the regularizer raises.
    """
    batches = list(micro_batches)
    if not batches:
        raise ValueError("accumulate_gradients: there are no micro-batches; give at least one.")
    with torch.no_grad():
        states, embeddings = zip(*((_RandomState(), _as_views(embed(batch))) for batch in batches))
    found: list[RegularizerTerms] = []

    def joint_loss(views: Views) -> Tensor:
        found.append(regularizer.compute(*views))
        return found[0].total()

    gradients = joint_gradients(joint_loss, embeddings, backward)
    after = _RandomState()
    for batch, state, gradient in zip(batches, states, gradients):
        state.put_back()
        backward(inner(_as_views(embed(batch)), gradient))
    after.put_back()
    return _detached(found[0])


def joint_gradients(
    joint_loss: Callable[[Views], Tensor], embeddings: Sequence[Views], backward: Callable[[Tensor], Any]
) -> list[Views]:
    """The gradient of a joint loss with respect to the embeddings of every micro-batch; parameters get theirs.

    Args:
        joint_loss: from the joined embeddings to a scalar.
        embeddings: of every micro-batch.
        backward: does `loss.backward()`, perhaps of a scaled loss; the gradients that come back are not scaled.

    Returns:
        For every micro-batch a gradient for each of its embeddings, float32 or wider.

    Raises:
        ValueError: micro-batches with other numbers of embeddings.
    """
    counts = [len(views) for views in embeddings]
    if len(set(counts)) > 1:
        raise ValueError(f"All micro-batches must have as many embeddings, got {counts}.")
    leaves = tuple(torch.cat(parts).detach().requires_grad_() for parts in zip(*embeddings))
    total = joint_loss(leaves)
    # Whatever `backward` scales a loss by is the gradient of this number.
    probe = torch.zeros((), device=total.device, requires_grad=True)
    backward(total + probe)
    assert probe.grad is not None
    columns = []
    for leaf, parts in zip(leaves, zip(*embeddings)):
        gradient = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        columns.append((_widened(gradient) / probe.grad).split([len(part) for part in parts]))
    return list(zip(*columns))


def inner(embeddings: Views, gradients: Views) -> Tensor:
    """The sum of <embedding, gradient>, a scalar whose gradient is the chain rule's next step.

    Args:
        embeddings: with their graph.
        gradients: of the loss with respect to them, of the same shapes.
    """
    return reduce(add, ((_widened(z) * gradient).sum() for z, gradient in zip(embeddings, gradients)))


class _RandomState:
    """torch's random state on the CPU and on the accelerator in use."""

    def __init__(self) -> None:
        self._sources: list[Any] = [torch.random]
        kind = torch.accelerator.current_accelerator()
        if kind is not None:
            module = torch.get_device_module(kind)
            if getattr(module, "is_initialized", lambda: True)():
                self._sources.append(module)
        self._states = [source.get_rng_state() for source in self._sources]

    def put_back(self) -> None:
        for source, state in zip(self._sources, self._states):
            source.set_rng_state(state)


def _as_views(views: Views | Tensor) -> Views:
    return (views,) if isinstance(views, Tensor) else tuple(views)


def _widened(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _detached(terms: Any) -> Any:
    """The same terms without graph, whatever holds them."""
    if isinstance(terms, Tensor):
        return terms.detach()
    if isinstance(terms, tuple):
        return tuple(map(_detached, terms))
    if dataclasses.is_dataclass(terms) and not isinstance(terms, type):
        fields = [field.name for field in dataclasses.fields(terms) if field.init]
        return dataclasses.replace(terms, **{name: _detached(getattr(terms, name)) for name in fields})
    return terms

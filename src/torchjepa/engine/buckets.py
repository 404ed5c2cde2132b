"""Gradients and buffers made equal on all processes, many tensors in one message."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from torchjepa import dist

_BUCKET_BYTES = 25 * 2**20  # DDP's


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes, as DDP does at the end of a backward pass.

    A gradient that is missing on some processes counts as zero there; one that is missing on all stays missing,
    so that the optimizer leaves the parameter alone as it does on one process.

    Args:
        parameters: the same on every process, in the same order; those that are not trained are skipped.
    """
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not dist.is_distributed() or not trained:
        return
    is_missing = [parameter.grad is None for parameter in trained]
    num_present = torch.tensor([not missing for missing in is_missing], dtype=torch.int32).to(
        trained[0].device
    )
    torch.distributed.all_reduce(num_present)
    gradients = []
    for parameter in trained:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    for bucket in _buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket]).div_(dist.world_size())
        torch.distributed.all_reduce(flat)
        _copy_back(bucket, flat)
    if any(is_missing):  # only then does the host wait for the answer
        for parameter, num in zip(trained, num_present.tolist()):
            if num == 0:
                parameter.grad = None


@torch.no_grad()
def broadcast_from_first(tensors: Iterable[Tensor]) -> None:
    """Give all processes the tensors of the first, in place; nothing when alone.

    Args:
        tensors: of the same shapes on every process, in the same order.
    """
    if not dist.is_distributed():
        return
    for bucket in _buckets([tensor for tensor in tensors if tensor.numel()]):
        flat = torch.cat([tensor.reshape(-1) for tensor in bucket])
        torch.distributed.broadcast(flat, 0)
        _copy_back(bucket, flat)


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors of one dtype, in order, up to a size."""
    for dtype in dict.fromkeys(tensor.dtype for tensor in tensors):
        bucket: list[Tensor] = []
        num_bytes = 0
        for tensor in tensors:
            if tensor.dtype != dtype:
                continue
            bucket.append(tensor)
            num_bytes += tensor.numel() * tensor.element_size()
            if num_bytes >= _BUCKET_BYTES:
                yield bucket
                bucket, num_bytes = [], 0
        if bucket:
            yield bucket


def _copy_back(bucket: Sequence[Tensor], flat: Tensor) -> None:
    parts = flat.split([tensor.numel() for tensor in bucket])
    torch._foreach_copy_(list(bucket), [part.view(tensor.shape) for part, tensor in zip(parts, bucket)])

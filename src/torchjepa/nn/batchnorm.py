"""Batch normalisation with the statistics of all processes, on any device."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from torchjepa import dist


class _GlobalBatchNorm(_BatchNorm):
    # Parameters, buffers and state dict are torch's, so weights move freely between the two.
    def __init__(
        self, num_features: int, eps: float = 1e-5, momentum: float = 0.1, affine: bool = True
    ) -> None:
        super().__init__(num_features, eps=eps, momentum=momentum, affine=affine)

    def forward(self, input: Float[Tensor, "b c *axes"]) -> Float[Tensor, "b c *axes"]:
        if not self.training:
            return super().forward(input)
        if not dist.is_distributed():
            self._check_count(input)
            return super().forward(input)
        self._check_input_dim(input)
        return self._normalize_globally(input)

    def _check_count(self, x: Tensor) -> None:
        if x.shape[0] > 0 and x.numel() // (x.shape[0] * x.shape[1]) * x.shape[0] < 2:
            raise ValueError(
                f"{type(self).__name__}: training needs more than one value for each feature, got "
                f"{tuple(x.shape)}; use a batch of at least 2, or call .eval() to use the running statistics."
            )

    def _normalize_globally(self, x: Tensor) -> Tensor:
        axes = [axis for axis in range(x.dim()) if axis != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        values = x.to(torch.promote_types(x.dtype, torch.float32))
        # Two passes, mean first: the one-pass E[x^2] - E[x]^2 loses the variance of inputs far from zero.
        local_count = values.new_full((1,), values.numel() // max(values.shape[1], 1))
        sums = dist.all_reduce_sum(torch.cat([values.sum(axes), local_count]))
        count = sums[-1].detach()
        mean = sums[:-1] / count
        centered = values - mean.view(shape)
        var = dist.all_reduce_sum(centered.square().sum(axes)) / count
        self._track(mean.detach(), var.detach(), count)
        scale = (var + self.eps).rsqrt()
        if self.affine:
            scale = scale * self.weight
        y = centered * scale.view(shape)
        if self.affine:
            y = y + self.bias.view(shape)
        return y.to(x.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, var: Tensor, count: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        unbiased = var * (count / (count - 1).clamp(min=1))
        self.running_mean.lerp_(mean.to(self.running_mean.dtype), self.momentum)
        self.running_var.lerp_(unbiased.to(self.running_var.dtype), self.momentum)


class GlobalBatchNorm1d(_GlobalBatchNorm, nn.BatchNorm1d):
    """Batch normalisation of `[b, c]` or `[b, c, L]` over the samples of all processes.

    y = (x - mean) / sqrt(var + eps) * weight + bias, in training with the mean and biased variance over the
    joint batch, exact for unequal local batches and in its gradients; running statistics (unbiased variance)
    in evaluation. Alone it is `F.batch_norm`. Works on CPU processes, which torch's SyncBatchNorm
    refuses, and keeps the parameter names of `nn.BatchNorm1d`. Statistics in float32 or wider.

    Args:
        num_features: channels c.
        eps: added to the variance, 1e-5 (torch's).
        momentum: weight of the new batch in the running statistics, 0.1 (torch's).
        affine: whether there are a weight and a bias.

    Raises:
        ValueError: training alone on one value for each feature, or a wrong number of axes.
    """


class GlobalBatchNorm2d(_GlobalBatchNorm, nn.BatchNorm2d):
    """Batch normalisation of `[b, c, h, w]` over the places of all processes; see `GlobalBatchNorm1d`.

    Args:
        num_features: channels c.
        eps: added to the variance, 1e-5 (torch's).
        momentum: weight of the new batch in the running statistics, 0.1 (torch's).
        affine: whether there are a weight and a bias.

    Raises:
        ValueError: training alone on one value for each feature, or a wrong number of axes.
    """

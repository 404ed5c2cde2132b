"""What a block adds to its residual stream, against the same parts called one by one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from torchjepa.nn import residual
from torchjepa.nn.residual import MLP, linear_add, norm_mlp_add


def parts(dim: int = 12, dtype: torch.dtype = torch.float64) -> tuple[nn.LayerNorm, MLP]:
    torch.manual_seed(0)
    norm, mlp = nn.LayerNorm(dim, eps=1e-6), MLP(dim, 3 * dim)
    with torch.no_grad():
        for parameter in (*norm.parameters(), *mlp.parameters()):
            parameter.normal_(0.3, 0.7)
    return norm.to(dtype), mlp.to(dtype)


def tokens(dtype: torch.dtype = torch.float64, dim: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, 5, dim, generator=generator, dtype=torch.float64).to(dtype).requires_grad_()


def one_by_one(x: Tensor, norm: nn.LayerNorm, mlp: MLP) -> Tensor:
    return x + mlp.fc2(nn.functional.gelu(mlp.fc1(norm(x))))


def gradients(out: Tensor, x: Tensor, norm: nn.Module, mlp: nn.Module) -> list[Tensor]:
    weights = torch.linspace(-1, 2, out.numel(), dtype=out.dtype).view_as(out)
    return list(torch.autograd.grad((out * weights).sum(), [x, *norm.parameters(), *mlp.parameters()]))


@pytest.fixture(params=[0, 1 << 30], ids=["large", "small"], autouse=True)
def both_sizes(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(residual, "_LEAN_BYTES", request.param)


def test_values_and_all_gradients_are_those_of_the_parts():
    x, (norm, mlp) = tokens(), parts()
    ours, theirs = norm_mlp_add(x, norm, mlp), one_by_one(x, norm, mlp)
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)
    for got, expected in zip(gradients(ours, x, norm, mlp), gradients(theirs, x, norm, mlp), strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-10, atol=1e-10)


def test_gradients_agree_with_finite_differences():
    norm, mlp = parts(4)
    x = tokens(dim=4)[:2, :2].detach().requires_grad_()
    torch.autograd.gradcheck(
        lambda x, *_: norm_mlp_add(x, norm, mlp), (x, *norm.parameters(), *mlp.parameters())
    )


@pytest.mark.parametrize("transposed", [False, True])
def test_any_layout_and_a_gradient_that_is_not_contiguous(transposed: bool):
    norm, mlp = parts()
    x = tokens().detach().transpose(0, 1).requires_grad_() if transposed else tokens()
    got, expected = (
        torch.autograd.grad(function(x, norm, mlp).transpose(0, 1)[1].square().sum(), x)[0]
        for function in (norm_mlp_add, one_by_one)
    )
    torch.testing.assert_close(got, expected)


def test_under_autocast_the_products_alone_are_in_bfloat16():
    x, (norm, mlp) = tokens(torch.float32), parts(dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = norm_mlp_add(x, norm, mlp), one_by_one(x, norm, mlp)
    assert ours.dtype == theirs.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2e-2, atol=2e-2)
    for got, expected in zip(gradients(ours, x, norm, mlp), gradients(theirs, x, norm, mlp), strict=True):
        assert got.dtype == expected.dtype == torch.float32
        assert (got - expected).norm() <= 1e-2 * expected.norm()


def kept_bytes(function: object) -> int:
    norm, mlp = parts(64, torch.float32)
    x = torch.randn(50, 64, requires_grad=True)
    own = {each.untyped_storage().data_ptr() for each in (x, *norm.parameters(), *mlp.parameters())}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = function(x, norm, mlp)  # type: ignore[operator]
    del out
    return sum(kept.values())


def test_it_keeps_less_than_half_of_what_autograd_keeps(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(residual, "_LEAN_BYTES", 0)
    assert kept_bytes(norm_mlp_add) < 0.5 * kept_bytes(one_by_one)


def test_hooks_on_a_part_are_called():
    x, (norm, mlp) = tokens(), parts()
    seen: list[str] = []
    for name, part in {"norm": norm, "mlp": mlp, "fc1": mlp.fc1, "fc2": mlp.fc2}.items():
        handle = part.register_forward_hook(lambda *_, name=name: seen.append(name))
        norm_mlp_add(x, norm, mlp)
        handle.remove()
        assert name in seen


def test_a_part_that_was_replaced_is_used():
    x, (norm, mlp) = tokens(), parts()

    class Doubled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    before = norm_mlp_add(x, norm, mlp)
    doubled = Doubled(*mlp.fc2.weight.shape[::-1]).double()
    doubled.load_state_dict(mlp.fc2.state_dict())
    mlp.fc2 = doubled
    torch.testing.assert_close(norm_mlp_add(x, norm, mlp) - x, 2 * (before - x))


def test_function_transforms_work():
    x, (norm, mlp) = tokens(), parts()
    grad = torch.func.grad(lambda x: norm_mlp_add(x, norm, mlp).square().sum())(x.detach())
    (expected,) = torch.autograd.grad(one_by_one(x, norm, mlp).square().sum(), x)
    torch.testing.assert_close(grad, expected)


def test_second_derivatives_are_those_of_the_parts():
    x, (norm, mlp) = tokens(), parts()
    linear = nn.Linear(12, 12).double()
    second = []
    for function in (norm_mlp_add, one_by_one):
        out = function(x, norm, mlp)
        out = linear_add(out, linear, x) if function is norm_mlp_add else x + linear(out)
        (grad,) = torch.autograd.grad(out.cos().sum(), x, create_graph=True)
        second.append(torch.autograd.grad(grad.square().sum(), [x, *mlp.parameters(), *linear.parameters()]))
    for got, expected in zip(*second, strict=True):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_linear_layer_added_to_the_residual(dtype: torch.dtype):
    torch.manual_seed(0)
    linear = nn.Linear(12, 7).double()
    x, stream = tokens(), torch.randn(3, 5, 7, dtype=torch.float64, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        ours, theirs = linear_add(x, linear, stream), stream + linear(x)
    assert ours.dtype == theirs.dtype
    wanted = [x, stream, linear.weight, linear.bias]
    ours_grads, their_grads = (torch.autograd.grad(out.square().sum(), wanted) for out in (ours, theirs))
    for got, expected in zip([ours, *ours_grads], [theirs, *their_grads], strict=True):
        torch.testing.assert_close(got, expected)


def test_a_hook_on_the_added_layer_is_called():
    linear, seen = nn.Linear(4, 4), []
    linear.register_forward_hook(lambda *_: seen.append(True))
    linear_add(torch.ones(2, 3, 4), linear, torch.ones(2, 3, 4))
    assert seen

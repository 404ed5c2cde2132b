"""Who gets kernels and who torch's operations, which see what was hooked, replaced, traced or does not fit."""

from __future__ import annotations

from collections.abc import Callable

import jaxtyping
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from tests.nn.native import oracle
from tests.nn.native.blocks import (
    DIM,
    DTYPES,
    LOW,
    autocast,
    derive,
    exact_block,
    make_block,
    needs_products,
    tokens,
    without_kernels,
)
from torchjepa.nn.attention import Block
from torchjepa.nn.native import nodes
from torchjepa.nn.residual import MLP, linear_add, norm_mlp_add

pytestmark = pytest.mark.skipif(not oracle.has_floats(), reason=oracle.NO_FLOATS)


class Doubled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def hook(part: str) -> Callable[[Block], object]:
    return lambda block: block.get_submodule(part).register_forward_hook(lambda *_: None)


def replace(part: str, make: Callable[[nn.Linear], nn.Linear]) -> Callable[[Block], object]:
    return lambda block: block.set_submodule(part, make(block.get_submodule(part)))  # type: ignore[arg-type]


def doubled(linear: nn.Linear) -> nn.Linear:
    twice = Doubled(linear.in_features, linear.out_features)
    twice.load_state_dict(linear.state_dict())
    return twice


def without_bias(linear: nn.Linear) -> nn.Linear:
    linear.bias = None
    return linear


def strided(name: str) -> Callable[[nn.Linear], nn.Linear]:
    def change(linear: nn.Linear) -> nn.Linear:
        wide = torch.stack(
            [getattr(linear, name).detach(), torch.full_like(getattr(linear, name), 7)], dim=-1
        )
        setattr(linear, name, nn.Parameter(wide[..., 0]))
        return linear

    return change


CHANGES = {
    **{
        f"a hook on {part}": hook(part)
        for part in ("attn.qkv", "attn.proj", "mlp", "mlp.fc1", "mlp.fc2", "norm2")
    },
    **{
        f"another class of {part}": replace(part, doubled)
        for part in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    },
    **{f"no bias in {part}": replace(part, without_bias) for part in ("attn.qkv", "attn.proj", "mlp.fc2")},
    **{f"a strided weight of {part}": replace(part, strided("weight")) for part in ("attn.qkv", "mlp.fc1")},
    **{
        f"a strided bias of {part}": replace(part, strided("bias"))
        for part in ("attn.qkv", "attn.proj", "mlp.fc2")
    },
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_changed_part_is_called_itself(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    block, x = make_block(), tokens()
    CHANGES[name](block)
    bound = 3e-6 if dtype == torch.float32 else 2e-2
    expected = without_kernels(monkeypatch, block, x, dtype)
    for ours, theirs in zip(derive(block, x, dtype), expected, strict=True):
        assert oracle.off(ours, theirs.double()) < bound


def count(seen: list[str], name: str) -> Callable[..., None]:
    return lambda *_: seen.append(name)


def test_hooks_on_every_part_are_called(called: list[str]) -> None:
    block, seen = make_block(), []
    parts = ("norm1", "attn", "attn.qkv", "attn.proj", "norm2", "mlp", "mlp.fc1", "mlp.fc2")
    for part in parts:
        block.get_submodule(part).register_forward_hook(count(seen, part))
    block(tokens())
    assert sorted(seen) == sorted(parts)
    assert [name for name in called if name != "attend"] == []


@pytest.mark.parametrize(
    ("dtype", "cast"),
    [(torch.float64, None), (LOW, None), (torch.float16, None), (torch.float32, torch.float16)],
)
def test_other_dtypes_of_tokens_weights_and_autocast(
    called: list[str], dtype: torch.dtype, cast: torch.dtype | None
) -> None:
    block, x = make_block().to(dtype), tokens().detach().to(dtype)
    with torch.autocast("cpu", cast, enabled=cast is not None):
        out = block(x)
    assert [name for name in called if name != "attend"] == []
    exact = exact_block(x.double(), *(each.double() for each in block.parameters()))
    assert oracle.off(out.detach(), exact) < {torch.float64: 1e-12}.get(dtype, 2e-2)


def test_weights_and_tokens_of_different_dtypes_are_refused_as_torch_does() -> None:
    block = make_block()
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        block(tokens().double())
    block.mlp.fc2.bias = nn.Parameter(block.mlp.fc2.bias.detach().double())
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        block(tokens())


def test_an_empty_batch(called: list[str]) -> None:
    out = make_block()(tokens(0))
    assert out.shape == (0, 19, DIM)
    out.sum().backward()
    assert called == []


@needs_products
def test_widths_that_the_kernels_have_not_take_torch(called: list[str]) -> None:
    block, x = Block(40, 2), torch.randn(2, 5, 40)
    with autocast(LOW):
        out = block(x)
    assert called == ["attend"]
    assert oracle.off(out.detach(), block(x).detach().double()) < 2e-2


class Noted(Tensor):
    """Some subclass of tensors."""


FOLLOWED: dict[str, Callable[[Block, Tensor], Tensor]] = {
    "compile": lambda block, x: torch.compile(block, backend="eager", fullgraph=True)(x),
    "export": lambda block, x: torch.export.export(block, (x,)).module()(x),
    "jit.trace": lambda block, x: torch.jit.trace(block, x, check_trace=False)(x),
    "make_fx": lambda block, x: make_fx(block)(x)(x + 0),
    "vmap": lambda block, x: torch.vmap(lambda row: block(row[None])[0])(x),
    "vjp": lambda block, x: torch.func.vjp(block, x)[0],
    "subclass": lambda block, x: block(x.as_subclass(Noted)).as_subclass(Tensor),
}


@pytest.mark.parametrize("name", FOLLOWED)
def test_who_follows_the_operations_sees_those_of_torch(
    called: list[str], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # no compiler sees through its checks
    block, x = make_block(), tokens().detach()
    with torch.no_grad():
        expected = block(x)
        called.clear()
        torch.testing.assert_close(FOLLOWED[name](block, x), expected, rtol=1e-5, atol=1e-5)
    assert called == []


def test_a_traced_graph_computes_anew_for_other_tokens() -> None:
    block, x, other = make_block(), tokens().detach(), tokens(2, 19).detach() * 2
    with torch.no_grad():
        for traced in (make_fx(block)(x), torch.jit.trace(block, x)):
            torch.testing.assert_close(traced(other), block(other), rtol=1e-5, atol=1e-5)


def test_exported_with_a_free_number_of_tokens_for_any() -> None:
    block, Dim = make_block(), torch.export.Dim
    sizes = {0: Dim("batch"), 1: Dim("tokens")}
    program = torch.export.export(block, (tokens().detach(),), dynamic_shapes=(sizes,)).module()
    for number in (3, 2500):  # more than any kernel takes
        x = tokens(1, number).detach()
        torch.testing.assert_close(program(x), block(x), rtol=1e-5, atol=1e-5)


def test_gradients_by_a_function_transform() -> None:
    block, x = make_block(), tokens()
    expected = derive(block, x)[1]
    weights = oracle.numbers(*x.shape, seed=2)
    found = torch.func.grad(lambda x: (block(x) * weights).sum())(x.detach())
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_fake_tensors_and_counters_of_operations(called: list[str]) -> None:
    block, x = make_block(), tokens(2, 19)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert block(mode.from_tensor(x.detach())).shape == x.shape
    with FlopCounterMode(display=False) as counter:
        block(x)
    assert called == []
    weights = sum(each.numel() for each in block.parameters() if each.ndim == 2)
    assert counter.get_total_flops() == 2 * 2 * 19 * weights  # it knows no attention on CPUs


TOO_WIDE = {
    "norm": (nn.LayerNorm(2 * DIM), MLP(DIM, 96)),
    "norm and fc1": (nn.LayerNorm(2 * DIM), MLP(2 * DIM, 96)),
    "fc1": (nn.LayerNorm(DIM), MLP(2 * DIM, 96)),
}


@pytest.mark.parametrize("name", TOO_WIDE)
@pytest.mark.parametrize("dtype", DTYPES)
def test_layers_of_another_width_never_reach_a_kernel(
    monkeypatch: pytest.MonkeyPatch, name: str, dtype: torch.dtype
) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # which checks shapes in tests alone
    monkeypatch.setattr(
        nodes, "norm_mlp_add", lambda *_: pytest.fail("the kernel would read beyond its tensors")
    )
    with autocast(dtype), pytest.raises((RuntimeError, ValueError)):
        norm_mlp_add(tokens(), *TOO_WIDE[name])


def test_a_norm_over_two_axes_is_left_to_torch() -> None:
    x, norm, mlp = tokens(), nn.LayerNorm((19, DIM)), MLP(DIM, 96)
    nn.init.normal_(norm.weight)
    torch.testing.assert_close(norm_mlp_add(x, norm, mlp), x + mlp(norm(x)), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_residual_that_is_broadcast(monkeypatch: pytest.MonkeyPatch, dtype: torch.dtype) -> None:
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    monkeypatch.setattr(
        nodes, "linear_add", lambda *_: pytest.fail("the kernel would write beyond its tensors")
    )
    linear, x, stream = nn.Linear(DIM, 96), tokens(), oracle.numbers(1, 19, 96, seed=4)
    with autocast(dtype):
        ours, theirs = linear_add(x, linear, stream), stream + F.linear(x, linear.weight, linear.bias)
    assert ours.shape == theirs.shape
    assert oracle.off(ours.detach(), theirs.detach().double()) < 5e-3


def test_what_is_added_in_another_dtype_is_refused_as_torch_does() -> None:
    linear, stream = nn.Linear(DIM, DIM), tokens().detach()
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        linear_add(tokens().double(), linear, stream)

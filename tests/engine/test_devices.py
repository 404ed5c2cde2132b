import pytest
import torch

from torchjepa.engine import resolve_precision


@pytest.mark.parametrize("precision", ["32", "bf16-mixed", "16-mixed", "33"])
def test_a_named_precision_is_given_back(precision):
    assert resolve_precision(precision, "cpu") == precision


@pytest.mark.parametrize("instructions", ["amx_bf16", "avx512_bf16"])
@pytest.mark.parametrize(("has", "expected"), [(True, "bf16-mixed"), (False, "32")])
def test_automatic_precision_is_bfloat16_where_the_cpu_multiplies_it(
    monkeypatch, instructions, has, expected
):
    known = {"amx_bf16": False, "avx512_bf16": False, "avx512_f": True, instructions: has}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: known, raising=False)
    assert resolve_precision("auto", "cpu") == expected


def test_automatic_precision_is_float32_where_torch_does_not_tell(monkeypatch):
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert resolve_precision("auto", "cpu") == "32"

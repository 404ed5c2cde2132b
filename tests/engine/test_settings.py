"""Settings are checked when they are made, by name."""

from __future__ import annotations

from typing import Any

import pytest

from tests.engine.tiny import settings
from torchjepa.engine.devices import launch


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("total_steps", 0, "total_steps must be an integer of at least 1, got 0"),
        ("global_batch_size", -1, "global_batch_size must be an integer of at least 1, got -1"),
        ("global_batch_size", 2.5, "global_batch_size must be an integer of at least 1, got 2.5"),
        ("accumulate", True, "accumulate must be an integer of at least 1, got True"),
        ("devices", 0, "devices must be an integer of at least 1, got 0"),
        ("log_every", 0, "log_every must be"),
        ("keep_checkpoints", 0, "keep_checkpoints must be"),
        ("seed", -1, "seed must be an integer of at least 0, got -1"),
        ("betas", (0.9, 1.0), r"betas must be two numbers in \[0, 1\), got \(0.9, 1.0\)"),
        ("eps", 0.0, "eps must be above 0"),
        ("clip_grad", 0.0, "clip_grad must be a number above 0, got 0.0; None"),
        ("strategy", "fdsp", "strategy must be one of .*; did you mean 'fsdp'"),
        (
            "learning_rate",
            1e-3,
            "learning_rate must be a function .*, got 0.001; .*lambda step: 0.001",
        ),
        ("precision", "bf16", "precision must be one of 32, .*got 'bf16'; did you mean 'bf16-mixed'"),
        ("precision", "64-true", "precision must be one of"),
        ("strategy", "dpp", "did you mean 'ddp'"),
        ("accelerator", "cdua", "did you mean 'cuda'"),
    ],
)
def test_refusals(name: str, value: Any, message: str) -> None:
    with pytest.raises(ValueError, match=f"TrainSettings: .*{message}" if "did" not in message else message):
        settings(**{name: value})


def test_float16_on_a_cpu_is_refused_with_a_reason() -> None:
    with pytest.raises(ValueError, match=r"16-mixed needs a CUDA GPU.*Use bf16-mixed or 32"):
        launch(settings(precision="16-mixed"))


def test_what_is_due() -> None:
    some = settings(total_steps=10)
    assert [step for step in range(10) if some.last_or_every(step, 4)] == [3, 7, 9]


def test_fsdp_does_not_scale_losses():
    with pytest.raises(
        ValueError, match="strategy fsdp does not scale losses, which precision 16-mixed needs"
    ):
        settings(strategy="fsdp", precision="16-mixed")

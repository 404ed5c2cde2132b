"""`torch.compile` by regions: a learner's repeated parts are compiled, one compilation serving all that are alike.

Compiled as a whole, a network of twelve equal blocks is twelve times the code. Here each block is a region: torch
guards a compiled region by classes and shapes and not by instances, so that all blocks of a list, and those of the
EMA's copy, share what was compiled for the first.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from torchjepa.engine.sharding import find_units

# For each kind of region: with and without gradient, the last block, and every length of a mask.
_MAX_VARIANTS = 64


class CompiledRegions:
    """The parts of a learner that run compiled while a training step is made, and as they are at other times.

    Regions are the entries of its `nn.ModuleList`s, the innermost where lists are nested, and whole each child that
    has none. Hooks, probes and the judge, with their other batch sizes, meet the learner uncompiled; weights and
    the names in the state dict are not touched. Shapes are fixed: each new length of a mask compiles once more.

    Args:
        learner: the `nn.Module` being trained.
        device: where it is trained.
        backend: torch's name of what compiles, inductor; the others say whether a fault is its or the tracing's.

    Attributes:
        regions: the modules that are compiled.

    Raises:
        ValueError: on a CPU, there is no C++ compiler.
    """

    def __init__(self, learner: nn.Module, device: torch.device, backend: str = "inductor") -> None:
        if device.type == "cpu" and backend == "inductor":
            _check_compiler()
        self.regions = find_regions(learner)
        self._forwards = [
            torch.compile(region.forward, backend=backend, dynamic=False) for region in self.regions
        ]

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let the regions run compiled for a while.

        Raises:
            ValueError: the compiler failed, or a region met more kinds of inputs than it can be compiled for.
        """
        # Late, because dynamo takes seconds to import.
        from torch._dynamo import config
        from torch._dynamo.exc import BackendCompilerFailed, FailOnRecompileLimitHit

        # The forward alone and not the call: hooks, those of FSDP among them, stay outside of the graph.
        for region, forward in zip(self.regions, self._forwards):
            region.forward = forward
        try:
            # Beyond its limit torch would silently leave a region uncompiled.
            with config.patch(recompile_limit=_MAX_VARIANTS, fail_on_recompile_limit_hit=True):
                yield
        except FailOnRecompileLimitHit as error:
            raise ValueError(
                f"--compile: a part of the learner was called with more than {_MAX_VARIANTS} kinds of inputs, each of "
                "which is compiled on its own. Give masks fewer lengths (`max_target_lengths` of MultiBlockMasking), "
                "or leave --compile out."
            ) from error
        except BackendCompilerFailed as error:
            raise ValueError(
                f"--compile: torch.compile failed: {_first_line(error)}; leave --compile out to train without."
            ) from error
        finally:
            for region in self.regions:
                del region.forward


def find_regions(learner: nn.Module) -> list[nn.Module]:
    """What is compiled one by one: entries of lists without lists inside, and each child that has no list.

    Args:
        learner: the `nn.Module` being trained.
    """
    regions: list[nn.Module] = []
    for child in learner.children():
        units = [unit for unit in find_units(child) if not find_units(unit)]
        regions += units or ([child] if any(True for _ in child.parameters()) else [])
    return list(dict.fromkeys(regions))


def _check_compiler() -> None:
    compiler = os.environ.get("CXX") or {"darwin": "clang++", "win32": "cl"}.get(sys.platform, "g++")
    if shutil.which(compiler) is None:
        raise ValueError(
            f"--compile needs a C++ compiler on a CPU, and {compiler!r} is not found; install it (Debian, Ubuntu: "
            "apt install g++), name another by the variable CXX, or leave --compile out."
        )


def _first_line(error: Any) -> str:
    text = str(error).strip()
    return text.splitlines()[0] if text else type(error).__name__

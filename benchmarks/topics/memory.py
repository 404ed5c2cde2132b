"""Peak memory of I-JEPA's training step

The peak of the resident set during two steps in a fresh process, over what the interpreter and its libraries held
before there were a model and a batch: weights, gradients, optimizer state, target and activations all count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from benchmarks.harness import Peak
from benchmarks.topics.step import SMALL_224, TINY_32, OfficialStep, OurStep, Setting, warm_up


def watch(make: Callable[[Setting], Callable[[], object]], setting: Setting) -> Callable[[], object]:
    warm_up(make)

    def run() -> None:
        step = make(setting)
        step()
        step()

    return run


def our_small() -> Callable[[], object]:
    return watch(lambda setting: OurStep(setting, "32"), SMALL_224)


def official_small() -> Callable[[], object]:
    return watch(OfficialStep.alone, SMALL_224)


def our_tiny_32() -> Callable[[], object]:
    return watch(lambda setting: OurStep(setting, "32"), TINY_32)


def official_tiny_32() -> Callable[[], object]:
    return watch(OfficialStep.alone, TINY_32)


def comparisons() -> Iterator[Peak]:
    here = __name__
    yield Peak(
        f"float32, {SMALL_224.name}", "official", f"{here}:our_small", f"{here}:official_small", goal=0.7
    )
    yield Peak(f"float32, {TINY_32.name}", "official", f"{here}:our_tiny_32", f"{here}:official_tiny_32")

"""I-JEPA's training step as in the topic `step`, ours with --compile

    python -m benchmarks step_compiled
    python -m benchmarks.topics.step_compiled [bf16-mixed]   # seconds until the first steps are done, cold and warm

Timed are steps for which everything has been compiled. Cold is a machine that has never compiled them (torch keeps
what it has compiled on disk), warm every later process.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator

from benchmarks.harness import Comparison
from benchmarks.topics.step import TINY_32, TINY_224, build

# Asked for by name: compiling for all rows takes minutes.
ON_REQUEST = True

_FIRST_STEPS = """
import sys, pyperf
from benchmarks.topics.step import TINY_224, OurStep, warm_up
warm_up(lambda setting: OurStep(setting, sys.argv[1]))
step = OurStep(TINY_224, sys.argv[1], compiled=sys.argv[2] == "compiled")
start = pyperf.perf_counter()
step(), step()
print(pyperf.perf_counter() - start)
"""


def comparisons() -> Iterator[Comparison]:
    for setting in (TINY_224, TINY_32):
        yield Comparison(
            f"float32, compiled, {setting.name}",
            "official",
            lambda setting=setting: build(setting, compiled=True),
            goal=1.15,
            limit_goal=1.25,
            tolerance=1e-5,
        )
        yield Comparison(
            f"ours bf16 compiled, theirs float32, {setting.name}",
            "official",
            lambda setting=setting: build(setting, "bf16-mixed", compiled=True),
            goal=3.0,
            limit_goal=1.6,
            tolerance=2e-2,
        )
        yield Comparison(
            f"bf16 both, ours compiled, {setting.name}",
            "official",
            lambda setting=setting: build(setting, "bf16-mixed", peer_autocast=True, compiled=True),
            goal=1.3,
            tolerance=2e-2,
        )


def main(precision: str = "32") -> None:
    with tempfile.TemporaryDirectory() as cache:
        for name, kind in (("cold", "compiled"), ("warm", "compiled"), ("not compiled", "plain")):
            environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
            command = [sys.executable, "-c", _FIRST_STEPS, precision, kind]
            done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
            print(f"{name}: {float(done.stdout.split()[-1]):.1f} s for the first two steps")


if __name__ == "__main__":
    main(*sys.argv[1:])

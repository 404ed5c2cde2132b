"""Real processes without the price of an import: one server imports everything, then forks for every program.

`python -m tests.engine.processes` is the server; it reads a JSON line for each program, answers with its pid,
and prints pid and exit code when the program ends. `Server` is the test's side of it.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


class Server:
    def __init__(self, log: Path) -> None:
        self._log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.engine.processes"],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, program: str, *, environment: dict[str, str] | None = None, **arguments: Any) -> int:
        """Start `programs.<program>(**arguments)` in a process and session of its own; its pid."""
        order = {"program": program, "arguments": arguments, "environment": environment or {}}
        return self._ask({**order, "log": str(self._log)})

    def wait(self, pid: int) -> int:
        """The exit code; a negative number is the signal that killed it."""
        return self._ask({"wait": pid})

    def run(self, program: str, **arguments: Any) -> None:
        """Start, wait and insist on success."""
        code = self.wait(self.start(program, **arguments))
        assert code == 0, f"exit code {code}\n{self.output()}"

    def output(self) -> str:
        return self._log.read_text() if self._log.exists() else ""

    def close(self) -> None:
        self._process.kill()
        self._process.communicate()

    def _ask(self, order: dict[str, Any]) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())


def serve() -> None:
    from tests.engine import programs

    assert not {"lightning_fabric", "tensorboard"} & sys.modules.keys(), (
        "the engine imports them when it trains"
    )
    import lightning_fabric.strategies
    import torch.utils.tensorboard

    assert lightning_fabric.strategies
    assert torch.utils.tensorboard
    assert threading.active_count() == 1, "a fork would lose the other threads"
    for line in sys.stdin:
        order = json.loads(line)
        answer = (
            _wait(order["wait"]) if "wait" in order else _fork(getattr(programs, order["program"]), order)
        )
        print(answer, flush=True)


def _wait(pid: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _fork(function: Any, order: dict[str, Any]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        os.setsid()
        signal.signal(signal.SIGINT, signal.default_int_handler)
        log = os.open(order["log"], os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for standard in (1, 2):
            os.dup2(log, standard)
        os.environ.update(order["environment"])
        function(**order["arguments"])
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    serve()

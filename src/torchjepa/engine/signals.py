"""SIGINT and SIGTERM ask the run to stop after the step at hand."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

_WATCHED = (signal.SIGINT, signal.SIGTERM)


class StopSignals:
    """While entered, the first SIGINT or SIGTERM is noted in `received`; a second SIGINT interrupts at once.

    Only the main thread may install handlers; elsewhere this does nothing.
    """

    def __init__(self) -> None:
        self.received = 0
        self._owner = os.getpid()
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._note) for number in _WATCHED}
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._owner:
            self._note_in_worker(number)
        elif self.received == signal.SIGINT and number == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            self.received = number

    def _note_in_worker(self, number: int) -> None:
        # A forked worker inherits the handler. Ctrl-C reaches it as well, and the step at hand still needs
        # it; SIGTERM may be how its parent ends it.
        if number == signal.SIGTERM:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

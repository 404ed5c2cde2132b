"""The rows as TensorBoard event files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torchjepa.engine.run import Run

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes every figure of every row under the run's `tensorboard/`; on resume, steps done again replace
    what was there.
    """

    def __init__(self) -> None:
        self._writer: SummaryWriter | None = None

    def on_start(self, run: Run) -> None:
        """Open an event file."""
        from torch.utils.tensorboard import SummaryWriter

        purge_step = run.start_step if run.folder.tensorboard.exists() else None
        self._writer = SummaryWriter(str(run.folder.tensorboard), purge_step=purge_step)

    def on_log(self, step: int, row: Mapping[str, Any]) -> None:
        """Write one row."""
        if self._writer is None:
            raise RuntimeError("TensorBoard: on_log was called before on_start.")
        for name, value in row.items():
            if name != "step" and value is not None:
                self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def on_end(self, run: Run) -> None:
        """Close the file."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

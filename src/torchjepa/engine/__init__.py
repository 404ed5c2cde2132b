"""Training: what a run is, the loop, checkpoints that survive anything, and the hooks that look on.

The engine knows no model: a learner gives `loss`, `after_step`, `encode` and `scheduled`.
"""

from torchjepa.engine.checkpoint import Checkpoint, find_fault, list_checkpoints, newest_checkpoint
from torchjepa.engine.devices import is_main_process, resolve_precision
from torchjepa.engine.estimate import Footprint, Speed, follow_update, time_updates
from torchjepa.engine.hooks import Doctor, Health, MetricsFile, Probe, Progress, TensorBoard
from torchjepa.engine.loop import train
from torchjepa.engine.run import Run, RunFolder, TrainResult, write_json
from torchjepa.engine.sampler import KeyedSampler
from torchjepa.engine.settings import TrainSettings
from torchjepa.engine.watch import DivergedError

__all__ = [
    "Checkpoint",
    "DivergedError",
    "Doctor",
    "Footprint",
    "Health",
    "KeyedSampler",
    "MetricsFile",
    "Probe",
    "Progress",
    "Run",
    "RunFolder",
    "Speed",
    "TensorBoard",
    "TrainResult",
    "TrainSettings",
    "find_fault",
    "follow_update",
    "is_main_process",
    "list_checkpoints",
    "newest_checkpoint",
    "resolve_precision",
    "time_updates",
    "train",
    "write_json",
]

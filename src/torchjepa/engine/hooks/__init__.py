"""What looks on while a run trains: objects with any of the methods below, called on the main process.

- `on_start(run)`: before the first step.
- `on_step(run, step, loss)`: after every update; figures it returns go into the step's row, or into the next
  row when the step has none. A hook with an attribute `every` gets a row every so many steps.
- `needs_weights(run, step)`: whether `on_step` will look at the weights of `run.learner`. With strategy "fsdp" no
  process has them whole, and they are gathered for such steps only; elsewhere they are always there.
- `on_log(step, row)`: a row is complete; a mapping of names to numbers or `None`.
- `on_end(run)`: always called once `on_start` was, after an error too.
"""

from torchjepa.engine.hooks.doctor import Doctor
from torchjepa.engine.hooks.health import Health
from torchjepa.engine.hooks.metrics_file import MetricsFile
from torchjepa.engine.hooks.probe import Probe
from torchjepa.engine.hooks.progress import Progress
from torchjepa.engine.hooks.tensorboard import TensorBoard

__all__ = ["Doctor", "Health", "MetricsFile", "Probe", "Progress", "TensorBoard"]

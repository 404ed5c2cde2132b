"""Shape annotations are checked while the tests run; nothing reaches the network or a display."""

import os

# Small tensors on a shared machine: a second OpenMP thread costs more in waiting than it computes. Children inherit it,
# because another number of threads adds in another order and gives other last bits.
os.environ["OMP_NUM_THREADS"] = "1"

import torch
from hypothesis import settings
from jaxtyping import install_import_hook

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
torch.set_num_threads(1)

install_import_hook(["torchjepa.nn", "torchjepa.models"], "beartype.beartype")

# No deadlines: how long an example takes says more about the machine's other work than about the code.
settings.register_profile("torchjepa", deadline=None)
settings.load_profile("torchjepa")

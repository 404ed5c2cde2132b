"""Shape annotations are checked while the tests run; nothing reaches the network or a display."""

import os

import torch
from jaxtyping import install_import_hook

os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Small tensors on a shared machine: a second OpenMP thread costs more in waiting than it computes.
torch.set_num_threads(1)

install_import_hook(["torchjepa.nn", "torchjepa.models"], "beartype.beartype")

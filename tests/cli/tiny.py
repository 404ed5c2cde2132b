"""Runs of a second, and data to run on."""

from pathlib import Path

import numpy as np
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

DIGITS = [
    *("--widths", "4", "8", "--depths", "1", "1", "--strides", "2", "2", "--projector-dim", "8"),
    *("--steps", "3", "--batch-size", "8", "--log-every", "1", "--probe-every", "0", "--image-size", "16"),
    *("--judge-samples", "200"),
]
IJEPA = [
    *("--image-size", "16", "--patch-size", "2", "--embed-dim", "16", "--depth", "1", "--num-heads", "2"),
    *("--predictor-dim", "8", "--predictor-depth", "1", "--predictor-heads", "1", "--lr", "0.001"),
    *(
        "--steps",
        "3",
        "--batch-size",
        "8",
        "--log-every",
        "1",
        "--probe-every",
        "0",
        "--judge-samples",
        "200",
    ),
]


def write_array(path: Path, num: int = 60, classes: int = 3) -> Path:
    """Images of 16 x 16 whose brightness tells the class, in an .npz file."""
    draws = np.random.default_rng(0)
    labels = np.arange(num) % classes
    images = draws.integers(0, 64, (num, 16, 16), dtype=np.uint8) + (labels * 60)[:, None, None].astype(
        np.uint8
    )
    names = np.array([f"class{label}" for label in labels])
    np.savez(path, images=images, labels=names)
    return path


def write_folder(path: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 10) -> Path:
    """A folder of small PNG and JPEG images in colour; the class `""` puts them at the top."""
    draws = np.random.default_rng(0)
    for place, name in enumerate(classes):
        (path / name).mkdir(parents=True, exist_ok=True)
        for i in range(each):
            pixels = draws.integers(0, 100, (20, 24, 3), dtype=np.uint8) + np.uint8(100 * (place % 2))
            Image.fromarray(pixels).save(path / name / f"{i:02d}.{'png' if i % 2 else 'jpg'}")
    return path


def final_weights(run: Path) -> dict[str, Tensor]:
    """The tensors of a run's newest checkpoint."""
    newest = max((run / "checkpoints").glob("step-*"), key=lambda path: int(path.name[5:]))
    return load_file(newest / "model.safetensors")

"""The usual way from a file to the encoder's input: an image at a time through Pillow, then stacked."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

Box = Sequence[int]


def decode(path: Path) -> Image.Image:
    return Image.open(path).convert("RGB")


def crop(image: Image.Image, box: Box, side: int) -> Image.Image:
    return image.crop((box[0], box[1], box[2], box[3])).resize((side, side), Image.Resampling.BICUBIC)


def to_tensor(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous().float().div(255)


def load_batch(paths: Sequence[Path], boxes: Sequence[Box], side: int, mean: Tensor, std: Tensor) -> Tensor:
    """Full decode, crop and resize, floats and normalisation for each image; the boxes are drawn before."""
    views = [to_tensor(crop(decode(path), box, side)) for path, box in zip(paths, boxes, strict=True)]
    return torch.stack([view.sub(mean).div(std) for view in views])

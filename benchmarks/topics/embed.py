"""jepa embed: a folder of small images to a file of features, beside a plain loop over a DataLoader

The loop is what one writes: a Dataset that opens, resizes and normalises, a DataLoader with batches of 256 and a worker
for each processor, the model under `no_grad`, features appended to a list, `np.savez`. The encoder has the same
weights: it is ours (`plain`: what the command saves around it is seen alone), or the published one restated, as in
`step` (`official`: what who leaves the published code gains). The images, half JPEG and half PNG of 32 x 32 pixels, are
made in a temporary folder. Ours is the command itself, opening the run and listing the folder included. *apart*
compares the features, in order.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Comparison, Contenders, Peak, relative_distance
from benchmarks.peers import ijepa as official
from torchjepa.cli import embed
from torchjepa.data import Preprocessing
from torchjepa.hub import load_encoder, save_encoder
from torchjepa.nn import MeanPool, ViT
from torchjepa.nn.positions import sincos_positions
from torchjepa.types import Grid

_SIDE = 32
_PREPROCESSING = Preprocessing(_SIDE)
_SMALL = {"patch_size": 4, "embed_dim": 128, "depth": 6, "num_heads": 4, "image_size": _SIDE}
_TINY = {"patch_size": 4, "embed_dim": 192, "depth": 12, "num_heads": 3, "image_size": _SIDE}


def comparisons() -> Iterator[Comparison | Peak]:
    low = ["--precision", "bf16-mixed"]
    small, tiny = (5000, _SMALL), (2000, _TINY)
    rows = (
        ("5,000 images, ViT 128 x 6, patch 4, float32", "plain", small, [], 1e-5, 1.3),
        ("5,000 images, ViT 128 x 6, patch 4, float32", "official", small, [], 1e-5, 1.3),
        ("2,000 images, ViT-Ti, patch 4, float32", "plain", tiny, [], 1e-5, 1.3),
        ("5,000 images, ViT 128 x 6, patch 4, ours in bf16", "plain", small, low, 2e-2, None),
    )
    for name, peer, sizes, flags, tolerance, goal in rows:
        build = partial(_build, *sizes, flags, restated=peer == "official")
        yield Comparison(name, peer, build, goal=goal, tolerance=tolerance, pairs=5)
    # Read the sizes and not their ratio: what grows is the names, a few MiB beside the noise of an allocator.
    yield Peak("20,000 images beside 2,000", "itself", f"{__name__}:watch_many", f"{__name__}:watch_few")


def _build(num: int, config: dict[str, int], flags: list[str], restated: bool) -> Contenders:
    folder, run = _images(num), _run(json.dumps(config))
    ours, theirs = Path(run) / "ours.npz", Path(run) / "theirs.npz"
    call = partial(_embed, run, folder, ours, flags)
    peer = partial(_plain_loop, run, folder, theirs, config if restated else None)
    call()
    peer()
    features = [torch.from_numpy(np.load(path)["features"]) for path in (ours, theirs)]
    return Contenders(call, peer, deviation=relative_distance(features[:1], features[1:]))


def _embed(run: str, folder: str, out: Path, flags: list[str]) -> None:
    with contextlib.redirect_stdout(io.StringIO()):
        code = embed.run([run, "--data", folder, "--out", str(out), "--device", "cpu", *flags])
    assert code == 0


def _plain_loop(run: str, folder: str, out: Path, restated: dict[str, int] | None) -> None:
    model = load_encoder(Path(run) / "encoder").model.eval()
    if restated is not None:
        model = _restate(model, restated)
    loader = DataLoader(_Images(folder), batch_size=256, num_workers=os.cpu_count() or 1)
    features, labels = [], []
    with torch.no_grad():
        for x, label in loader:
            features.append(model(x).mean(dim=1))
            labels.append(label)
    np.savez(out, features=torch.cat(features).numpy(), labels=torch.cat(labels).numpy())


def _restate(encoder: nn.Module, config: dict[str, int]) -> nn.Module:
    side, dim = config["image_size"] // config["patch_size"], config["embed_dim"]
    positions = sincos_positions(Grid(h=side, w=side), dim).float()
    found = official.Encoder(config["patch_size"], dim, config["depth"], config["num_heads"], positions)
    official.load(found, encoder.state_dict())
    return found.eval()


class _Images(Dataset[tuple[Tensor, int]]):
    def __init__(self, folder: str) -> None:
        self.paths = sorted(Path(folder).rglob("*.*"))
        self.mean = torch.tensor(_PREPROCESSING.mean)[:, None, None]
        self.std = torch.tensor(_PREPROCESSING.std)[:, None, None]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path = self.paths[index]
        with Image.open(path) as file:
            image = file.convert("RGB").resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        x = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
        return (x - self.mean) / self.std, int(path.parent.name)


@cache
def _images(num: int) -> str:
    folder = tempfile.TemporaryDirectory(prefix="torchjepa-embed-")
    _kept.append(folder)
    rng = np.random.default_rng(0)
    for index in range(num):
        below = Path(folder.name) / str(index % 10)
        below.mkdir(exist_ok=True)
        coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
        image = coarse.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC)
        image.save(below / f"{index:06d}.{'png' if index % 2 else 'jpg'}")
    return folder.name


@cache
def _run(config: str) -> str:
    folder = tempfile.TemporaryDirectory(prefix="torchjepa-embed-")
    _kept.append(folder)
    (Path(folder.name) / "run.json").write_text(json.dumps({"recipe": "ijepa-tiny", "settings": {}}))
    encoder = ViT(**json.loads(config))
    save_encoder(Path(folder.name) / "encoder", encoder, pool=MeanPool.name, preprocessing=_PREPROCESSING)
    return folder.name


_kept: list[tempfile.TemporaryDirectory[str]] = []  # until the process ends


def watch_many() -> Callable[[], object]:
    return _watch(20_000)


def watch_few() -> Callable[[], object]:
    return _watch(2000)


def _watch(num: int) -> Callable[[], object]:
    # An encoder small enough to be done in seconds.
    run = _run(json.dumps({**_SMALL, "embed_dim": 32, "depth": 1, "num_heads": 1}))
    _embed(run, _images(300), Path(run) / "warm.npz", [])
    return partial(_embed, run, _images(num), Path(run) / "out.npz", [])

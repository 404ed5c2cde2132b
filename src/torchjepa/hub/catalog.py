"""The released JEPA weights, as far as their publishers' pages tell; `None` is unknown. Data: `jepa models` shows it.

Sources: the READMEs and licence files of facebookresearch/ijepa, facebookresearch/jepa and facebookresearch/vjepa2, the
model cards and file pages of huggingface.co/facebook, and the papers. Parameters are counted, of the encoder alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

_IJEPA = "https://dl.fbaipublicfiles.com/ijepa/"
_VJEPA = "https://dl.fbaipublicfiles.com/jepa/"
_VJEPA2 = "https://dl.fbaipublicfiles.com/vjepa2/"
_CC_BY_NC = "CC-BY-NC-4.0"
NONCOMMERCIAL = frozenset({_CC_BY_NC})


@dataclass(frozen=True)
class WeightFile:
    """One place that weights can be had from.

    Args:
        source: address of an official file (`torchjepa.load` takes it once downloaded), or id on the Hugging Face hub.
        layout: `official` or `transformers`.
        licence: its short name, of the SPDX list.
        licence_from: what says so.
        file: name of the file.
        gigabytes: its size in units of 1e9 bytes, as its page rounds it.
        sha256: its checksum.
    """

    source: str
    layout: str
    licence: str
    licence_from: str
    file: str
    gigabytes: float | None = None
    sha256: str | None = None


@dataclass(frozen=True)
class Release:
    """A trained model that was released.

    Args:
        name: what this catalogue calls it.
        family: `I-JEPA`, `V-JEPA`, `V-JEPA 2`, `V-JEPA 2-AC`, `V-JEPA 2 probe` or `V-JEPA 2.1`.
        size: architecture and patch, `ViT-H/14`.
        resolution: side of the inputs in pixels.
        data: what it was trained on.
        files: where it can be had.
        parameters: of the encoder.
        frames: of a clip; `None` for images.
        architecture: arguments of `torchjepa.nn.ViT` that make the encoder; empty where torchjepa has no such network.
        note: what else to know.
    """

    name: str
    family: str
    size: str
    resolution: int
    data: str
    files: tuple[WeightFile, ...]
    parameters: int | None = None
    frames: int | None = None
    architecture: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""

    @property
    def licences(self) -> tuple[str, ...]:
        """The licences of its files, each once."""
        return tuple(dict.fromkeys(file.licence for file in self.files))

    @property
    def commercial(self) -> bool:
        """Whether no licence of its files forbids commercial use."""
        return not NONCOMMERCIAL & set(self.licences)


def _official(base: str, path: str, licence: str) -> WeightFile:
    repository = {_IJEPA: "ijepa", _VJEPA: "jepa", _VJEPA2: "vjepa2"}[base]
    said = f"licence of github.com/facebookresearch/{repository}; none is stated for the file"
    return WeightFile(base + path, "official", licence, said, path.rsplit("/", 1)[-1])


def _hub(
    name: str, licence: str, gigabytes: float | None = None, sha256: str | None = None, card: bool = True
) -> WeightFile:
    said = (
        "model card" if card else "licence of github.com/facebookresearch/vjepa2; the model card was not seen"
    )
    return WeightFile(
        f"facebook/{name}", "transformers", licence, said, "model.safetensors", gigabytes, sha256
    )


_L = {"embed_dim": 1024, "depth": 24, "num_heads": 16}
_H = {"embed_dim": 1280, "depth": 32, "num_heads": 16}
_G = {"embed_dim": 1408, "depth": 40, "num_heads": 16, "mlp_ratio": 48 / 11}
_CLIPS = {"patch_size": (2, 16, 16)}
_ROTARY = _CLIPS | {"positions": {"pairing": "released"}}
# The encoders of V-JEPA 2.
_LARGE: dict[str, Any] = {"size": "ViT-L/16", "parameters": 303_885_312, "architecture": _L | _ROTARY}
_HUGE: dict[str, Any] = {"size": "ViT-H/16", "parameters": 631_648_000, "architecture": _H | _ROTARY}
_GIANT: dict[str, Any] = {
    "size": "ViT-g/16",
    "parameters": 1_012_173_952,
    "architecture": _G | {"num_heads": 22} | _ROTARY,
}
_PROBE = "The official file holds the attentive probe alone, for the tokens of this encoder"
_NOT_READ = "torchjepa does not read this family yet."

_IJEPA_RELEASES = (
    Release(
        name="ijepa-vith14-in1k",
        family="I-JEPA",
        size="ViT-H/14",
        resolution=224,
        data="ImageNet-1k",
        parameters=630_434_560,
        architecture=_H | {"patch_size": 14},
        files=(
            _official(_IJEPA, "IN1K-vit.h.14-300e.pth.tar", _CC_BY_NC),
            _hub("ijepa_vith14_1k", _CC_BY_NC, 2.52),
        ),
    ),
    Release(
        name="ijepa-vith16-448-in1k",
        family="I-JEPA",
        size="ViT-H/16",
        resolution=448,
        data="ImageNet-1k",
        parameters=630_664_960,
        architecture=_H | {"patch_size": 16},
        files=(
            _official(_IJEPA, "IN1K-vit.h.16-448px-300e.pth.tar", _CC_BY_NC),
            _hub(
                "ijepa_vith16_1k",
                _CC_BY_NC,
                2.53,
                "8c308445236d8a400c88eca10569ab8967827bcc35e2975e5e728f675f3cae91",
            ),
        ),
    ),
    Release(
        name="ijepa-vith14-in22k",
        family="I-JEPA",
        size="ViT-H/14",
        resolution=224,
        data="ImageNet-22k",
        parameters=630_434_560,
        architecture=_H | {"patch_size": 14},
        files=(
            _official(_IJEPA, "IN22K-vit.h.14-900e.pth.tar", _CC_BY_NC),
            _hub(
                "ijepa_vith14_22k",
                _CC_BY_NC,
                2.52,
                "a4f270231ec442c39788b175a982d7fae0b0ede990271604ec0e8ef6989ff478",
            ),
        ),
    ),
    Release(
        name="ijepa-vitg16-in22k",
        family="I-JEPA",
        size="ViT-g/16",
        resolution=224,
        data="ImageNet-22k",
        parameters=1_011_092_608,
        architecture=_G | {"patch_size": 16},
        files=(
            _official(_IJEPA, "IN22K-vit.g.16-600e.pth.tar", _CC_BY_NC),
            _hub(
                "ijepa_vitg16_22k",
                _CC_BY_NC,
                4.05,
                "1eb25fdbbcbac89bce19da8ba74f677b6388864af934e470799f71ca3433ff3e",
            ),
        ),
    ),
)

_VJEPA_RELEASES = tuple(
    Release(
        name=f"vjepa-{file}",
        family="V-JEPA",
        size=size,
        resolution=resolution,
        frames=16,
        data="VideoMix2M",
        parameters=parameters,
        architecture=sizes | _CLIPS,
        files=(_official(_VJEPA, f"{file}/{file}.pth.tar", _CC_BY_NC),),
    )
    for file, size, resolution, parameters, sizes in (
        ("vitl16", "ViT-L/16", 224, 303_885_312, _L),
        ("vith16", "ViT-H/16", 224, 631_648_000, _H),
        ("vith16-384", "ViT-H/16", 384, 631_648_000, _H),
    )
)

_VJEPA2_RELEASES = tuple(
    Release(
        name=f"vjepa2-{file}",
        family="V-JEPA 2",
        resolution=resolution,
        frames=64,
        data="VideoMix22M",
        files=(_official(_VJEPA2, f"{file}.pt", "MIT"), conversion),
        **encoder,
    )
    for file, resolution, encoder, conversion in (
        ("vitl", 256, _LARGE, _hub("vjepa2-vitl-fpc64-256", "MIT", card=False)),
        ("vith", 256, _HUGE, _hub("vjepa2-vith-fpc64-256", "MIT", card=False)),
        ("vitg", 256, _GIANT, _hub("vjepa2-vitg-fpc64-256", "Apache-2.0")),
        ("vitg-384", 384, _GIANT, _hub("vjepa2-vitg-fpc64-384", "Apache-2.0")),
    )
)

_AC_RELEASES = (
    Release(
        name="vjepa2-ac-vitg",
        family="V-JEPA 2-AC",
        resolution=256,
        frames=64,
        data="VideoMix22M, then DROID",
        files=(_official(_VJEPA2, "vjepa2-ac-vitg.pt", "MIT"),),
        note="Encoder and the action-conditioned predictor (305 M parameters).",
        **_GIANT,
    ),
)

_PROBE_RELEASES = tuple(
    Release(
        name=f"vjepa2-probe-{file}",
        family="V-JEPA 2 probe",
        resolution=resolution,
        frames=frames,
        data=data,
        files=(
            _official(_VJEPA2, f"evals/{file}.pt", "MIT"),
            *((_hub(conversion, "MIT", card=False),) if conversion else ()),
        ),
        **(_LARGE if "vitl" in file else _GIANT),
        note=f"{_PROBE}; the hub id holds both." if conversion else f"{_PROBE}.",
    )
    for file, resolution, frames, data, conversion in (
        ("ssv2-vitl-16x2x3", 256, 16, "Something-Something v2", "vjepa2-vitl-fpc16-256-ssv2"),
        ("ssv2-vitg-384-64x2x3", 384, 64, "Something-Something v2", "vjepa2-vitg-fpc64-384-ssv2"),
        ("diving48-vitl-256", 256, 32, "Diving48", "vjepa2-vitl-fpc32-256-diving48"),
        ("diving48-vitg-384-32x4x3", 384, 32, "Diving48", "vjepa2-vitg-fpc32-384-diving48"),
        ("ek100-vitl-256", 256, None, "EPIC-KITCHENS-100", None),
        ("ek100-vitg-384", 384, None, "EPIC-KITCHENS-100", None),
    )
)

_VJEPA21_RELEASES = tuple(
    Release(
        name=f"vjepa2.1-{size}-384",
        family="V-JEPA 2.1",
        size=architecture,
        resolution=384,
        frames=64,
        data="VisionMix163M",
        files=(_official(_VJEPA2, f"{file}.pt", "MIT"),),
        note=f"{rounded} parameters, its README says. {_NOT_READ}",
    )
    for size, architecture, file, rounded in (
        ("vitb", "ViT-B/16", "vjepa2_1_vitb_dist_vitG_384", "80 M"),
        ("vitl", "ViT-L/16", "vjepa2_1_vitl_dist_vitG_384", "300 M"),
        ("vitg", "ViT-g/16", "vjepa2_1_vitg_384", "1 B"),
        ("vitG", "ViT-G/16", "vjepa2_1_vitG_384", "2 B"),
    )
)

RELEASES: tuple[Release, ...] = (
    *_IJEPA_RELEASES,
    *_VJEPA_RELEASES,
    *_VJEPA2_RELEASES,
    *_AC_RELEASES,
    *_PROBE_RELEASES,
    *_VJEPA21_RELEASES,
)

"""Small checkpoints for the tests of `load`: the official ones, and ours written in anyone's layout."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn

from torchjepa.hub import export_state
from torchjepa.nn import ActionPredictor, AttentiveClassifier, Predictor, RotaryPositions, ViT

OFFICIAL = Path(__file__).parents[1] / "fixtures" / "official"
RELEASED = RotaryPositions(pairing="released")
FILES = {
    "ijepa": "ijepa.pth.tar",
    "vjepa": "vjepa.pth.tar",
    "vjepa2": "vjepa2.pt",
    "vjepa2_ac": "vjepa2_ac.pt",
    "vjepa2_probe": "vjepa2_probe.pt",
}


def outputs(name):
    """What the official code computed."""
    return load_file(OFFICIAL / f"{name}_io.safetensors")


def close(ours, theirs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, atol=atol, rtol=0)


def flat(values, prefix=""):
    """The tensors of a nested checkpoint by full name; a loop of its own, and not the library's."""
    if isinstance(values, torch.Tensor):
        return {prefix: values}
    items = (
        values.items() if isinstance(values, dict) else enumerate(values) if isinstance(values, list) else ()
    )
    return {
        name: tensor
        for key, value in items
        for name, tensor in flat(value, f"{prefix}.{key}" if prefix else str(key)).items()
    }


def official_state(family):
    """The tensors of an official fixture by full name."""
    return flat(torch.load(OFFICIAL / FILES[family], weights_only=True))


def write(path, state):
    """Tensors as a file: a pickle for .pt, safetensors otherwise."""
    if path.suffix == ".pt":
        torch.save(state, path)
    else:
        save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def randomized(network: nn.Module, seed=0):
    """The network with every tensor drawn at random, so that none can stand for another."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in network.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator) * 0.1)
    return network.eval()


def networks(family, dim=24, depth=2, heads=2, patch=4, tubelet=2, tokens=3):
    """Networks of ours that a family has a place for."""
    sizes = {"embed_dim": dim, "depth": depth, "num_heads": heads}
    narrow = {"encoder_dim": dim, "embed_dim": 12, "depth": 1, "num_heads": 2}
    video = {"patch_size": (tubelet, patch, patch), **sizes}
    if "ijepa" in family:
        encoders = [ViT(patch_size=patch, image_size=(2 * patch, 3 * patch), **sizes) for _ in range(2)]
        predictor = Predictor(**narrow)
    elif family == "vjepa":
        encoders = [ViT(image_size=(2 * tubelet, 3 * patch, 3 * patch), **video) for _ in range(2)]
        predictor = Predictor(**narrow, positions="thw", num_mask_tokens=tokens)
    else:
        encoders = [ViT(positions=RELEASED, **video) for _ in range(2)]
        predictor = Predictor(**narrow, positions=RELEASED, num_mask_tokens=tokens)
    if family == "vjepa2_ac":
        predictor = ActionPredictor(**narrow, positions=RELEASED, action_dim=5, state_dim=4)
    eps = 1e-6 if family.startswith("transformers") else 1e-5
    classifier = AttentiveClassifier(embed_dim=dim, num_classes=5, num_heads=heads, depth=3, norm_eps=eps)
    if family == "transformers_ijepa":
        classifier = nn.Linear(dim, 5)
    chosen = {
        "ijepa": (*encoders, predictor, None),
        "vjepa": (*encoders, predictor, None),
        "vjepa2": (*encoders, predictor, None),
        "vjepa2_ac": (encoders[0], None, predictor, None),
        "vjepa2_probe": (None, None, None, classifier),
        "transformers_ijepa": (encoders[0], None, None, classifier),
        "transformers_vjepa2": (encoders[0], None, predictor, classifier),
    }[family]
    parts = zip(("encoder", "target_encoder", "predictor", "classifier"), chosen)
    return {name: randomized(part, seed) for seed, (name, part) in enumerate(parts) if part is not None}


def state_of(family, **sizes):
    """Networks and their tensors in the layout of a family."""
    parts = networks(family, **sizes)
    return parts, export_state(parts, family)

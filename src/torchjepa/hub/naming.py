"""From the full name of a tensor to the network that it belongs to and its name there."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

# Wrappers that trainers leave in front of names; they say nothing.
_WRAPPERS = {"module", "backbone", "model", "_orig_mod", "ijepa", "vjepa2"}
_ROLES = {
    "encoder": "encoder",
    "target_encoder": "target_encoder",
    "ema_encoder": "target_encoder",
    "predictor": "predictor",
}
_CLASSIFIERS = "classifiers"
# What a training keeps beside the networks.
_TRAINING = {"opt", "optimizer", "scaler", "scheduler", "epoch", "loss", "lr", "batch_size", "world_size"}
# First words of the names in a predictor and in a classifier, for files that do not say which network they hold.
_PREDICTOR = {"mask_token", "mask_tokens", "action_encoder", "state_encoder", "extrinsics_encoder"}
_CLASSIFIER = {"pooler", "linear", "classifier"}


@dataclass(frozen=True)
class Names:
    """The tensors of a file by network.

    Args:
        parts: for each network its tensors, name there to full name. `encoder` where the file does not say which.
        training: tensors of the training's state, an optimizer's say.
        clashes: names that are another tensor's once the prefixes are off.
        says_role: whether names tell the online from the target encoder.
    """

    parts: dict[str, dict[str, str]]
    training: tuple[str, ...]
    clashes: tuple[str, ...]
    says_role: bool


def split_names(names: Iterable[str]) -> Names:
    """Sort the tensors of a file by network, prefixes such as `module.backbone.` off in any nesting.

    Args:
        names: full names.
    """
    parts: dict[str, dict[str, str]] = {}
    training, clashes, says_role = [], [], False
    for full in names:
        if full.partition(".")[0] in _TRAINING:
            training.append(full)
            continue
        part, rest = _split(full)
        says_role = says_role or part.endswith("encoder")
        if parts.setdefault(part or _guess(rest), {}).setdefault(rest, full) != full:
            clashes.append(full)
    return Names(parts, tuple(training), tuple(clashes), says_role)


def _split(full: str) -> tuple[str, str]:
    words, part = full.split("."), ""
    while len(words) > 1:
        if words[0] in _ROLES:
            part = part or _ROLES[words[0]]  # the outermost one counts
        elif words[0] == _CLASSIFIERS and words[1].isdigit() and len(words) > 2:
            part = part or f"{_CLASSIFIERS}.{words.pop(1)}"
        elif words[0] not in _WRAPPERS:
            break
        words.pop(0)
    return part, ".".join(words)


def _guess(rest: str) -> str:
    word = rest.partition(".")[0]
    if word in _PREDICTOR or word.startswith("predictor_"):
        return "predictor"
    # transformers' IJepaModel may hold a pooler of its own, which is no probe.
    return "classifier" if word in _CLASSIFIER and not rest.startswith("pooler.dense.") else "encoder"

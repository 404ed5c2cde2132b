"""Ship an encoder: a folder that others load, with its model card, and the same on the hub."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from torch import nn

from torchjepa.data import Preprocessing
from torchjepa.hub.card import model_card
from torchjepa.hub.encoder import OWN_FAMILY, LoadedEncoder, encoder_config, read_config, save_encoder

if TYPE_CHECKING:
    from torchjepa.hub.load import Pretrained

    Saveable: TypeAlias = nn.Module | LoadedEncoder | Pretrained

CARD = "README.md"
_FILES = ("config.json", "model.safetensors", "preprocessing.json", CARD)
_log = logging.getLogger(__name__)


def save(
    model: Saveable,
    folder: str | Path,
    *,
    preprocessing: Preprocessing | None = None,
    pool: str | None = None,
    extra: Mapping[str, Any] | None = None,
    run: str | Path | None = None,
    name: str | None = None,
) -> Path:
    """Write an encoder as a folder that `torchjepa.load` reads: weights, configuration, preprocessing, model card.

    Weights are safetensors. `config.json` names a family and an architecture of `torchjepa.nn` and never an import
    path, so that loading a stranger's folder imports and runs nothing. Whatever was loaded beside the encoder, a
    predictor say, is kept beside it. The licence is left for the owner to state in the card.

    Args:
        model: what `torchjepa.load` or `load_encoder` gave, or the network itself.
        folder: where to write; what is there is replaced, and appears whole or not at all.
        preprocessing: what an input goes through before it meets the network; that of `model` by default.
        pool: name of the pooling to use it with; that of `model` by default, else "mean".
        extra: anything else worth keeping, fit for JSON; that of `model` by default.
        run: the run folder that it comes from, which fills in the card: data fingerprint, recipe, and scores
            with their baselines.
        name: what the card calls it, the name of the folder by default.

    Returns:
        The folder.

    Raises:
        ValueError: no preprocessing, no such pooling, or something that does not fit into JSON.
    """
    folder = Path(folder)
    if isinstance(model, nn.Module):
        network, family, parts = model, OWN_FAMILY, {}
    else:
        network, family = model.model, model.family
        parts = {part: kept for part, kept in model.parts.items() if kept is not network}
        preprocessing, pool = preprocessing or model.preprocessing, pool or model.pool
        extra = model.config.get("extra", {}) if extra is None else extra
    if preprocessing is None:
        raise ValueError(
            "save: preprocessing must be given: whoever loads the folder has to know what its inputs go through. "
            "Pass preprocessing=torchjepa.data.Preprocessing(image_size=...)."
        )
    pool, extra = pool or "mean", extra or {}
    config = encoder_config(network, pool, extra, family, parts)
    card = model_card(name or folder.name, network, config, preprocessing, run)
    return save_encoder(
        folder,
        network,
        pool=pool,
        preprocessing=preprocessing,
        extra=extra,
        family=family,
        parts=parts,
        texts={CARD: card},
    )


def push_to_hub(
    model: Saveable | str | Path,
    repo_id: str,
    *,
    private: bool = True,
    revision: str | None = None,
    token: str | None = None,
    message: str = "Upload an encoder with torchjepa",
    **saving: Any,
) -> str:
    """Upload an encoder to the Hugging Face hub.

    Args:
        model: a folder that `save` wrote, or what `save` takes.
        repo_id: `owner/name` on the hub; made if it is not there.
        private: whether a new repository is private, which it is by default: making public what cannot be taken
            back is left to the owner, who has to state a licence first.
        revision: the branch, "main" by default.
        token: of the hub; the one that `hf auth login` keeps by default.
        message: of the commit.
        saving: arguments of `save`, where `model` is not a folder.

    Returns:
        The address of the commit.

    Raises:
        ValueError: the folder is not one that `torchjepa.load` reads, or arguments of `save` beside a folder.
    """
    if not isinstance(model, (str, Path)):
        with tempfile.TemporaryDirectory() as temporary:
            folder = save(model, Path(temporary) / "encoder", name=repo_id, **saving)
            return _upload(folder, repo_id, private, revision, token, message)
    if saving:
        raise ValueError(
            f"push_to_hub: {', '.join(saving)} cannot change a folder that is written; save it again with them."
        )
    folder = Path(model)
    missing = [name for name in _FILES if not (folder / name).is_file()]
    if missing:
        raise ValueError(f"push_to_hub: {folder} has no {missing[0]}; write the folder with torchjepa.save.")
    read_config(folder / "config.json")
    return _upload(folder, repo_id, private, revision, token, message)


def _upload(
    folder: Path, repo_id: str, private: bool, revision: str | None, token: str | None, message: str
) -> str:
    from huggingface_hub import HfApi

    if not _states_licence(folder / CARD):
        _log.warning("The model card of %s states no licence: nobody else may use the weights yet.", repo_id)
    api = HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    commit = api.upload_folder(
        repo_id=repo_id,
        folder_path=folder,
        revision=revision,
        commit_message=message,
        allow_patterns=[*_FILES, "*.safetensors"],
    )
    return str(commit.commit_url)


def _states_licence(card: Path) -> bool:
    header = card.read_text(encoding="utf-8").split("\n---", 1)[0]
    return any(line.startswith("license:") for line in header.splitlines())

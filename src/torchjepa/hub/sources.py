"""Where weights come from: a run, a folder of ours or of transformers, a file, or a repository on the hub."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torchjepa.hub.reading import TensorFile, open_tensors

_WEIGHTS = ("model.safetensors", "pytorch_model.bin")
_PROCESSORS = ("video_preprocessor_config.json", "preprocessor_config.json")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Configuration and safetensors; a pickle only where the repository has nothing else.
_HUB_FILES = ["*.json", "*.safetensors"]
_HUB_PICKLES = ["*.json", "*.bin", "*.pt", "*.pth", "*.pth.tar"]


@dataclass(frozen=True)
class Source:
    """An opened file of tensors and what stands beside it.

    Args:
        name: what the user asked for.
        tensors: the file, listed and not read.
        config: `config.json` beside it, empty where there is none.
        processor: `preprocessor_config.json` or `video_preprocessor_config.json` beside it.
    """

    name: str
    tensors: TensorFile
    config: Mapping[str, Any] = field(default_factory=dict)
    processor: Mapping[str, Any] = field(default_factory=dict)


def locate(source: str | Path, revision: str | None = None) -> Path:
    """The file or folder that a source names; a repository of the hub is fetched into its cache.

    Args:
        source: a path, or `owner/name` on the Hugging Face hub.
        revision: branch, tag or commit there, `main` by default.

    Returns:
        A file, or the folder that holds `config.json`.

    Raises:
        ValueError: there is no such path, and no such repository or no way to reach it.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        return _inner(path)
    if path.is_file():
        return path
    if not _HUB_ID.fullmatch(str(source)):
        raise ValueError(
            f"load: there is no {source}; expected a run folder, an encoder folder, a .pth.tar, .pt or .safetensors "
            "file, a transformers folder, or a hub id such as facebook/ijepa_vith14_1k."
        )
    return _fetch(str(source), revision)


def _inner(folder: Path) -> Path:
    # A run folder keeps its deployable encoder in encoder/.
    if (folder / "run.json").is_file():
        if not (folder / "encoder" / "config.json").is_file():
            raise ValueError(f"load: the run {folder} has no encoder yet; finish its training with --resume.")
        return folder / "encoder"
    return folder


def _fetch(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_HUB_FILES))
        if not any(folder.glob("*.safetensors")):
            folder = Path(snapshot_download(repo_id, revision=revision, allow_patterns=_HUB_PICKLES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"load: {repo_id} is no file here, and the hub does not give it ({type(error).__name__}: {reason}); check "
            "the name and the connection, or download it and pass the folder."
        ) from None
    files = sorted(path for pattern in _HUB_PICKLES[2:] for path in folder.glob(pattern))
    return files[0] if len(files) == 1 and not (folder / "config.json").is_file() else folder


def is_own_folder(path: Path) -> bool:
    """Whether this is a folder that `save_encoder` wrote."""
    return path.is_dir() and "architecture" in _read_json(path / "config.json")


def open_source(path: Path, name: str) -> Source:
    """Open a file, or the weights of a transformers folder with its configuration.

    Args:
        path: what `locate` gave.
        name: what the user asked for.

    Raises:
        ValueError: the folder holds no weights, or the file is refused.
    """
    # A file of any other name than a folder's weights has nothing to do with its neighbours.
    if path.is_file() and path.name not in _WEIGHTS:
        return Source(name, open_tensors(path))
    folder = path if path.is_dir() else path.parent
    processor = next((values for file in _PROCESSORS if (values := _read_json(folder / file))), {})
    return Source(name, open_tensors(path), _read_json(folder / "config.json"), processor)


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"load: {path} is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"load: {path} must hold an object, got {type(values).__name__}.")
    return values

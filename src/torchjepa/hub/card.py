"""The model card: what a stranger should know of an encoder, filled in from its configuration and its run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import Any

from torch import nn

from torchjepa.data import Preprocessing
from torchjepa.engine import RunFolder
from torchjepa.evaluation.judge import BASELINES, PROBES, read_scores, tasks_in

# Places on somebody's disk, and what changes nothing in the weights.
_PRIVATE = {"path", "data", "test_data", "name", "runs", "num_workers"}
_HEADER = """---
library_name: torchjepa
pipeline_tag: {task}
tags:
- jepa
- {family}
# The licence is for the owner of the weights to state, as one line: `license: apache-2.0`, say.
---
"""
_USE = """## Use

```python
import torchjepa

pretrained = torchjepa.load("{name}")
features = pretrained.encode(images)
```
"""
_LICENCE = """## Licence

Not stated. Until the owner of the weights states one, here and as `license:` in the header, nobody but the owner has
the right to use them. Weights that were converted or trained on keep the licence of what they came from.
"""


def model_card(
    name: str,
    model: nn.Module,
    config: Mapping[str, Any],
    preprocessing: Preprocessing,
    run: str | Path | None = None,
) -> str:
    """A model card in Markdown with the header that the hub reads; the licence is left open.

    Args:
        name: what the model is called: the folder, or the id on the hub.
        model: the encoder.
        config: its `config.json`.
        preprocessing: what its inputs go through.
        run: the run folder that it comes from; gives recipe, data and scores. Places on the disk of whoever
            trained are left out.

    Raises:
        ValueError: `run` is no run folder, or its files are damaged.
    """
    family = str(config.get("family", "torchjepa"))
    task = "feature-extraction" if preprocessing.num_frames else "image-feature-extraction"
    parts = [
        _HEADER.format(task=task, family=family),
        f"# {name}\n",
        _what(model, config, family),
        _USE.format(name=name),
        _list("Preprocessing", _pictures(preprocessing)),
        *_of_run(run),
        _LICENCE,
    ]
    return "\n".join(parts)


def _what(model: nn.Module, config: Mapping[str, Any], family: str) -> str:
    millions = sum(parameter.numel() for parameter in model.parameters()) / 1e6
    facts = {
        "family": family,
        "architecture": config["architecture"],
        "parameters": f"{millions:.3g} M",
        "pooling it was judged with": config["pool"],
        **config["kwargs"],
    }
    facts |= {f"part `{name}`": part["architecture"] for name, part in config.get("parts", {}).items()}
    return "An encoder trained by a joint-embedding predictive architecture (JEPA).\n\n" + _list(
        "Model", facts
    )


def _pictures(preprocessing: Preprocessing) -> dict[str, Any]:
    values = {name: value for name, value in asdict(preprocessing).items() if value is not None}
    steps = "largest centred square, antialiased bicubic resize, (x / 255 - mean) / std"
    return {"steps": steps, **values}


def _of_run(run: str | Path | None) -> list[str]:
    if run is None:
        return ["## Training\n\nNot recorded: the weights were not saved from a torchjepa run.\n"]
    folder = RunFolder.open(run)
    stored = _read(folder.run_json)
    settings = {name: value for name, value in stored.get("overrides", {}).items() if name not in _PRIVATE}
    training = {
        "recipe": stored.get("recipe"),
        "changed settings": settings or "none",
        "steps": stored.get("total_steps"),
        "seed": stored.get("seed"),
        "versions": stored.get("versions"),
    }
    return [_list("Training", training), _data(stored.get("data", {})), _scores(folder.scores)]


def _data(data: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {"classes": len(data.get("classes", ())) or "no labels"}
    for part in ("train", "test"):
        mark = data.get(part, {})
        facts[f"fingerprint of the {part} data"] = {
            name: value for name, value in mark.items() if name not in _PRIVATE
        }
    return _list("Data", facts)


def _scores(path: Path) -> str:
    scores = read_scores(path) if path.is_file() else []
    if not scores:
        return "## Scores\n\nNot judged: there are no labels to judge with.\n"
    several = len(tasks_in(scores)) > 1
    columns = [name for name in ("encoder", *BASELINES) if any(score.features == name for score in scores)]
    rows = []
    for task, probe in product(tasks_in(scores), PROBES):
        found = {each.features: each.score for each in scores if (each.task, each.probe) == (task, probe)}
        if found:
            cells = (f"{100 * found[name]:.1f}" if name in found else "-" for name in columns)
            rows.append((*((task,) if several else ()), probe, *cells))
    first = scores[0]
    return (
        f"## Scores\n\nAccuracy in %, on {first.n_test} test samples after {first.n_train} training samples; "
        "`untrained` is the same network before training, `pixels` its input, `majority` the commonest label"
        + ("; `frame` the encoder that sees the middle frame alone.\n\n" if "frame" in columns else ".\n\n")
        + _table((*(("task",) if several else ()), "probe", *columns), rows)
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def _list(title: str, facts: Mapping[str, Any]) -> str:
    lines = [f"- {name}: {_text(value)}" for name, value in facts.items()]
    return f"## {title}\n\n" + "\n".join(lines) + "\n"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else f"`{json.dumps(value)}`"


def _read(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"save: {path} is not JSON ({error}).") from None
    if not isinstance(values, dict):
        raise ValueError(f"save: {path} must hold an object, got {type(values).__name__}.")
    return values

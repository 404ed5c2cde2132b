"""jepa doctor: say whether a run, or anybody's features in a file, have collapsed, and what to change.

Exit code 0 healthy, 1 unhealthy, 2 cannot tell (or an error).
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

if TYPE_CHECKING:
    from torchjepa.cli.opening import OpenedRun

_SHOWN_AS = {0: "green", 1: "red", 2: "yellow"}


@dataclasses.dataclass(frozen=True)
class DoctorCommand:
    """Say whether a run, or anybody's features in a file, have collapsed, and what to change.

    Exit code 0: healthy, 1: unhealthy, 2: cannot tell, or an error. A run that still trains, or was stopped, is
    examined at its newest checkpoint.
    """

    target: Annotated[str, tyro.conf.Positional]
    """Run folder, or features of any library: .npy [n, d] (tokens: [b, t, d]), .npz, .parquet, .csv."""
    json: bool = False
    """Print one JSON object and nothing else."""
    data: str | None = None
    """Of a run: images (folder or array) to examine it on. Default: the run's own data."""
    samples: int = 2048
    """At most this many samples, an even or random choice."""
    num_workers: int = 0
    """Processes that load images."""
    device: str = "auto"
    """auto, cpu, cuda, mps."""


def run(argv: Sequence[str]) -> int:
    """Run `jepa doctor` with these arguments."""
    command = tyro.cli(
        DoctorCommand, args=list(argv), prog="jepa doctor", config=(tyro.conf.FlagCreatePairsOff,)
    )
    if command.samples < 2:
        raise ValueError(f"--samples must be at least 2, got {command.samples}.")
    target = Path(command.target)
    if not target.exists():
        raise ValueError(f"There is no run folder and no file {target}.")
    diagnosis = _of_run(command) if target.is_dir() else _of_file(command, target)
    if command.json:
        print(json.dumps({"target": command.target, **diagnosis}, indent=2))
    else:
        _show(command.target, diagnosis)
    return int(diagnosis["exit_code"])


def _of_file(command: DoctorCommand, path: Path) -> dict[str, Any]:
    from torchjepa.evaluation import diagnose, read_features

    if command.data is not None:
        raise ValueError(f"--data is for a run folder; {path} is a file of features.")
    read = read_features(path, max_samples=command.samples)
    return {**diagnose(read.arrays).to_json(), "notes": list(read.notes)}


def _of_run(command: DoctorCommand) -> dict[str, Any]:
    from torchjepa.cli.opening import OpenedRun
    from torchjepa.cli.run_json import read_run
    from torchjepa.engine import RunFolder, list_checkpoints
    from torchjepa.report.curves import read_metrics
    from torchjepa.report.doctor import read_checks

    folder = RunFolder.open(command.target)
    opened = OpenedRun(folder, read_run(folder.run_json))
    checks = read_checks(folder.doctor)
    if list_checkpoints(folder.checkpoints) or folder.encoder.is_dir():
        diagnosis = _examined(command, opened, read_metrics(folder.metrics))
    elif checks:
        last = checks[-1]
        note = f"No checkpoint and no encoder yet: this is the check that the training made at step {last['step']}."
        return {**last, "notes": [note]}
    else:
        raise ValueError(
            f"{folder.path} has no checkpoint, no encoder and no check yet; ask again when it has trained on."
        )
    if checks and checks[-1]["verdict"] != diagnosis["verdict"]:
        diagnosis["notes"].append(
            f"The last check in training, at step {checks[-1]['step']}, said: {checks[-1]['verdict']}."
        )
    return diagnosis


def _examined(command: DoctorCommand, opened: OpenedRun, history: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The verdict on the newest checkpoint, or on the deployed encoder where no checkpoint is left."""
    from torchjepa.cli.devices import pick_device
    from torchjepa.cli.examining import examine, loss_features, training_batches
    from torchjepa.cli.judging import Judge
    from torchjepa.data import BatchStream, ErrorLog
    from torchjepa.evaluation import diagnose

    recipe, device = opened.recipe, pick_device(command.device)
    split = recipe.open_data(command.data)
    patient = opened.newest(split.train.num_channels)
    if not command.json:
        print(f"{patient.description}, on {split.description}", flush=True)
    judge = Judge(
        split,
        patient.preprocessing,
        recipe.pool_name,
        device,
        max_errors=recipe.max_data_errors,
        precision=recipe.precision,
        seed=recipe.seed,
        num_workers=command.num_workers,
    )
    training, notes = {}, ("No checkpoint is left: only the encoder was examined.",)
    if patient.learner is not None:
        stream = BatchStream(
            split.train,
            recipe.build_transform(patient.preprocessing),
            seed=recipe.seed,
            num_workers=command.num_workers,
            errors=ErrorLog(None, len(split.train), recipe.max_data_errors),
        )
        batches = training_batches(recipe, stream, device)
        step = max(0, patient.step - 1)
        training, notes = loss_features(patient.learner.to(device), batches, step, recipe.precision)
    encoder = patient.encoder.to(device)
    examined = examine(judge, encoder, judge.some_features(encoder, command.samples), training, notes)
    # A row after the checkpoint knows more than the weights that are examined.
    past = [row for row in history if row.get("step", 0) < patient.step]
    return {**diagnose(examined.features, history=past).to_json(), "notes": list(examined.notes)}


def _show(target: str, diagnosis: dict[str, Any]) -> None:
    """The verdict, the figures that led to it, and what to change; plain where nobody looks."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from torchjepa.report.doctor import figure_rows, tell_verdict

    console = Console(highlight=False)
    colour = _SHOWN_AS[diagnosis["exit_code"]]
    console.print(Text(target, "bold"))
    console.print(Text(tell_verdict(diagnosis)[0], colour))
    table = Table("figure", "value", "expected")
    table.columns[1].justify = "right"
    for row in figure_rows(diagnosis):
        table.add_row(row.words, Text(row.value, f"bold {colour}" if row.bad else ""), row.expected)
    console.print(table)
    for number, finding in enumerate(diagnosis["findings"]):
        if number:
            console.print(Text(f"Also {finding['verdict']}: {finding['summary']}"))
        console.print(Text("What to change, the likeliest first:"))
        knobs = Table.grid(padding=(0, 1))
        for place, advice in enumerate(finding["advice"], 1):
            knobs.add_row(f" {place}.", Text(advice))
        console.print(knobs)
    for note in diagnosis.get("notes", ()):
        console.print(Text(f"Note: {note}", "dim"))

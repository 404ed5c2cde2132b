"""A snapshot of the public names: adding one is a line here, losing one is a decision."""

import importlib
import pkgutil
from pathlib import Path

import torchjepa

SNAPSHOT = Path(__file__).with_name("public_names.txt")


def public_names() -> list[str]:
    names = []
    for room in pkgutil.iter_modules(torchjepa.__path__):
        if room.name.startswith("_") or room.name == "cli":
            continue
        module = importlib.import_module(f"torchjepa.{room.name}")
        exported = getattr(module, "__all__", None)
        if exported is None:
            exported = [
                name
                for name, value in vars(module).items()
                if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
            ]
        names += [f"torchjepa.{room.name}.{name}" for name in exported]
    return sorted(names)


def test_public_names_match_the_snapshot() -> None:
    written = SNAPSHOT.read_text().split()
    now = public_names()
    assert now == written, (
        f"new: {sorted(set(now) - set(written))}; gone: {sorted(set(written) - set(now))}; "
        f"if this is meant, run `python -m tests.architecture.test_public_names` and say so in CHANGELOG.md"
    )


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(public_names()) + "\n")

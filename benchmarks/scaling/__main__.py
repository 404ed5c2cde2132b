"""Measure how cost grows, and say where it grows faster than it should.

    python -m benchmarks.scaling                          every curve (about ten minutes on two cores)
    python -m benchmarks.scaling "masks over tokens"      some, by name or by the name of their file
    python -m benchmarks.scaling --write docs/growth.md   put all that has been measured so far into the page

An exponent is the slope on a log-log plot over the three largest sizes. Measured figures are kept in --out.
"""

from __future__ import annotations

import argparse
import importlib
import json
import pkgutil
import sys
from pathlib import Path

import torch

from benchmarks import scaling
from benchmarks.scaling.curve import Curve, Measured
from benchmarks.scaling.page import write_page


def main() -> int:
    options = _options()
    known = _known()
    if options.list:
        for module, curve in known:
            print(f"{module:12s} {curve.name}: {', '.join(map(str, curve.sizes))} {curve.axis}")
        return 0
    store = Path(options.out)
    kept = _load(store)
    if options.write:
        write_page(Path(options.write), [kept[curve.name] for _, curve in known if curve.name in kept])
        return 0
    torch.set_num_threads(options.threads)
    chosen = [
        curve for module, curve in known if not options.names or {module, curve.name} & set(options.names)
    ]
    if not chosen:
        sys.exit(f"No curve is called {', '.join(options.names)}; --list names them.")
    measured = []
    for curve in chosen:
        measured.append(Measured.of(curve, lambda text: print(text, file=sys.stderr, flush=True)))
        kept[curve.name] = measured[-1]
        store.parent.mkdir(parents=True, exist_ok=True)
        store.write_text(json.dumps([each.as_json() for each in kept.values()], indent=1))
    for each in measured:
        print("\n".join(each.verdicts()))
    return int(not all(each.grows_as_it_should for each in measured))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.scaling",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="curves or files; default all")
    parser.add_argument("--list", action="store_true", help="say what there is")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", default="runs/scaling.json", help="where figures are kept")
    parser.add_argument("--write", metavar="FILE", help="write the page and its picture, measure nothing")
    return parser.parse_args()


def _known() -> list[tuple[str, Curve]]:
    """The curves of every module here, with the module's name."""
    found = []
    for module in pkgutil.iter_modules(scaling.__path__):
        if module.name != "__main__":
            loaded = importlib.import_module(f"{scaling.__name__}.{module.name}")
            found += [(module.name, curve) for curve in getattr(loaded, "curves", tuple)()]
    return found


def _load(store: Path) -> dict[str, Measured]:
    if not store.is_file():
        return {}
    return {each["name"]: Measured(**each) for each in json.loads(store.read_text())}


if __name__ == "__main__":
    sys.exit(main())

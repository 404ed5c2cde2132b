"""The doctor's rules, one file each: `find(case)` gives a finding or `None`. A new file here is a new rule."""

import importlib
import pkgutil
from collections.abc import Callable

from torchjepa.evaluation.doctor.case import Case
from torchjepa.evaluation.doctor.verdict import Finding

Rule = Callable[[Case], Finding | None]

RULES: tuple[Rule, ...] = tuple(
    importlib.import_module(f"{__name__}.{module.name}").find for module in pkgutil.iter_modules(__path__)
)

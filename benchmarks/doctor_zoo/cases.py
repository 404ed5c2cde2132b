"""All cases, in the order of the table."""

from __future__ import annotations

from benchmarks.doctor_zoo import joint_cases, other_cases, synthetic
from benchmarks.doctor_zoo.case import Case

CASES: list[Case] = [*joint_cases.CASES, *other_cases.CASES, *synthetic.CASES]

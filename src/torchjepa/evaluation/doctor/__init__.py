"""The doctor: is a representation collapsing, in which way, and what is to be changed?"""

from torchjepa.evaluation.doctor.diagnose import diagnose
from torchjepa.evaluation.doctor.thresholds import Thresholds
from torchjepa.evaluation.doctor.verdict import Diagnosis, Evidence, Finding, Verdict

__all__ = ["Diagnosis", "Evidence", "Finding", "Thresholds", "Verdict", "diagnose"]

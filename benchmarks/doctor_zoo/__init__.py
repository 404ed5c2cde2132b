"""Runs and feature sets whose health is known, to prove `evaluation.doctor` on: python -m benchmarks.doctor_zoo."""

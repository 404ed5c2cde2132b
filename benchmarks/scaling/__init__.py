"""How cost grows: time and memory of every part over the sizes that it should grow with, and the exponents.

A module here that has `curves()`, which gives `Curve`s, is found by `python -m benchmarks.scaling`.
"""

"""What every topic is measured with: interleaved pairs, measured limits, peaks of memory, one table."""

from benchmarks.harness.comparison import Comparison, Contenders, Peak, relative_distance
from benchmarks.harness.limits import Product, copy_limit, count_products, products
from benchmarks.harness.memory import peak_growth
from benchmarks.harness.pairs import Timing, time_comparison

__all__ = [
    "Comparison",
    "Contenders",
    "Peak",
    "Product",
    "Timing",
    "copy_limit",
    "count_products",
    "peak_growth",
    "products",
    "relative_distance",
    "time_comparison",
]

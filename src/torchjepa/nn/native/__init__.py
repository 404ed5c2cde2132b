"""Kernels in C++ for processors, compiled on first use: what stands between the products of a transformer block."""

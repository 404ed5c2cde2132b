"""Kernels in C++ for processors, compiled on first use: the halves of a transformer block."""

"""Benchmarks, against the PyTorch package where it has the same part; the results are in docs/benchmarks.md."""

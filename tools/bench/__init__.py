"""Speed, against the PyTorch package where it has the same part; the results are docs/benchmarks.md."""

"""Reference numbers from the PyTorch package, and the page that compares ours with them."""

import os

# Read by the package when it is imported, so they are set before any module of this folder can do that.
os.environ.setdefault("NO_TORCH_COMPILE", "1")
os.environ.setdefault("NO_CUDA_GRAPH", "1")

"""LLaMA-Omni (arXiv 2409.06666): a text model that hears through a speech encoder and speaks through units."""

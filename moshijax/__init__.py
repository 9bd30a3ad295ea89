"""moshijax: train, fine-tune, evaluate and serve full-duplex voice models in JAX."""

__version__ = "0.1.0"

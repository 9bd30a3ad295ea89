"""Named codec configurations."""

from __future__ import annotations

from moshijax.codec.config import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.nn.transformer import TransformerConfig

#: The published Mimi (arXiv 2410.00037): 24 kHz, 12.5 frames per second, 32 codebooks of 2048. It has 79 308 609
#: parameters, and 96 151 393 with the codebooks and their usage counts.
MIMI = MimiConfig()

#: The same architecture, small enough to train in minutes on a CPU. Same frames, 8 codebooks.
TINY = MimiConfig(
    seanet=SeanetConfig(dimension=64, n_filters=8),
    transformer=TransformerConfig(dim=64, num_layers=2, num_heads=4, hidden_dim=128, context=50, layer_scale=0.1),
    quantizer=QuantizerConfig(dim=32, bins=256, num_codebooks=8),
)

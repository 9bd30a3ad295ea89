"""Named codec configurations."""

from __future__ import annotations

from dataclasses import replace

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

#: `TINY` with smaller codebooks, which a small corpus keeps in use.
SMALL = replace(TINY, quantizer=QuantizerConfig(dim=32, bins=128, num_codebooks=8))

#: The codec of the quickstart. 24 samples side by side, a bank of 21 bands with windows of 4 ms every 2 ms, envelopes
#: every 10 ms, a latent every 20. Short windows tell formants apart but not harmonics: what is heard does not depend on
#: the pitch. Two semantic levels: 256 entries alone are too few for a phoneme and its neighbours.
QUICKSTART = MimiConfig(
    seanet=SeanetConfig(dimension=128, n_filters=8, ratios=(2, 5, 2, 3, 8), n_residual_layers=0),
    transformer=TransformerConfig(dim=128, num_layers=2, num_heads=4, hidden_dim=256, context=50, layer_scale=1.0),
    quantizer=QuantizerConfig(dim=32, bins=256, num_codebooks=4, semantic=2),
)

#: The quickstart's architecture with one semantic level and 8 codebooks, for trying the quantiser's choices one by one.
#: Codebooks have at most a hundredth of the frames that their moving averages remember. At a `layer_scale` of 1.0 the
#: mel distance ends 13 to 17 % larger.
ABLATION = replace(
    QUICKSTART,
    transformer=replace(QUICKSTART.transformer, layer_scale=0.1),
    quantizer=QuantizerConfig(dim=32, bins=128, num_codebooks=8),
)

"""Named configurations of the language model."""

from __future__ import annotations

from moshijax.lm import layouts
from moshijax.lm.config import DepthConfig, LMConfig, LookupConditioner
from moshijax.nn.transformer import TransformerConfig


def _moshi_stack(**fields) -> TransformerConfig:
    defaults = dict(gating="silu", norm="rms_norm_f32", positional_embedding="rope", dtype="bfloat16")
    return TransformerConfig(**{**defaults, **fields})


def _moshi_depth(layers: int = 6, **fields) -> DepthConfig:
    stack = _moshi_stack(dim=1024, num_layers=layers, num_heads=16, hidden_dim=2816, positional_embedding="none")
    return DepthConfig(stack, **fields)


#: Moshiko and Moshika, as released (`configs/moshi_7b_202409.json` of `moshi`): 7 687 729 152 parameters.
MOSHI_7B = LMConfig(
    layout=layouts.dialogue(codebooks=8, acoustic_delay=1),
    card=2048,
    text_card=32000,
    temporal=_moshi_stack(dim=4096, num_layers=32, num_heads=32, hidden_dim=11264, context=3000),
    depth=_moshi_depth(),
)

#: The 2B development model (`configs/moshi_dev_2b.json` of `moshi`): 16 codebooks per speaker.
DEV_2B = LMConfig(
    layout=layouts.dialogue(codebooks=16, acoustic_delay=2),
    card=2048,
    text_card=48000,
    temporal=_moshi_stack(dim=2560, num_layers=24, num_heads=20, hidden_dim=7040, context=3000, max_period=1e5),
    depth=_moshi_depth(),
    conditioners=(LookupConditioner("description", bins=31, dim=16),),
)

#: A model that trains in minutes on a CPU; text pieces as in the quickstart.
TINY = LMConfig(
    layout=layouts.dialogue(codebooks=4, acoustic_delay=1),
    card=256,
    text_card=256,
    temporal=TransformerConfig(
        dim=128, num_layers=4, num_heads=4, hidden_dim=336, gating="silu", norm="rms_norm_f32", context=150
    ),
    depth=DepthConfig(
        TransformerConfig(
            dim=64,
            num_layers=2,
            num_heads=4,
            hidden_dim=168,
            gating="silu",
            norm="rms_norm_f32",
            positional_embedding="none",
        )
    ),
)

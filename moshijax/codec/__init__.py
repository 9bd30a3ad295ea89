"""Mimi: a causal neural audio codec, 12.5 frames of a few codes per second of speech.

config, params = moshijax.weights.load_mimi(path)
codes_BQT = moshijax.codec.encode(config, params, waveform_BN, num_codebooks=8)
waveform_BN = moshijax.codec.decode(config, params, codes_BQT)
"""

from moshijax.codec import configs
from moshijax.codec.config import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.codec.functions import (
    decode,
    decode_latent,
    decode_step,
    encode,
    encode_latent,
    encode_step,
    inference_layout,
    init,
    init_decoder_state,
    init_encoder_state,
    reset_state,
)
from moshijax.codec.mimi import Decoder, Encoder, Mimi, num_frames

__all__ = [
    "Decoder",
    "Encoder",
    "Mimi",
    "MimiConfig",
    "QuantizerConfig",
    "SeanetConfig",
    "configs",
    "decode",
    "decode_latent",
    "decode_step",
    "encode",
    "encode_latent",
    "encode_step",
    "init",
    "init_decoder_state",
    "init_encoder_state",
    "inference_layout",
    "num_frames",
    "reset_state",
]

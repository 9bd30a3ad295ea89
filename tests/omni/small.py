"""A whole LLaMA-Omni of a few thousand parameters, and its vocoder."""

from __future__ import annotations

from functools import cache

import jax
import numpy as np

from moshijax.nn.rope import RopeScaling
from moshijax.omni import config, vocoder
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.config import OmniConfig, llama_stack
from moshijax.omni.speech_decoder import SpeechDecoderConfig
from moshijax.omni.text_model import TextConfig
from moshijax.omni.vocoder import VocoderConfig
from moshijax.omni.whisper import WhisperConfig, whisper_stack

SCALING = RopeScaling(original_context=64)
OMNI = OmniConfig(
    WhisperConfig(80, 50, whisper_stack(16, 1, 2)),  # questions of a second
    AdapterConfig(16, 24, 20),
    TextConfig(40, llama_stack(24, 2, 4, 2, 32, context=96, rope_scaling=SCALING)),
    SpeechDecoderConfig(24, 12, llama_stack(24, 2, 4, 4, 32, context=400, rope_scaling=SCALING), upsample=5),
)
VOCODER = VocoderConfig(12, 8, 16, (5, 4), (11, 8), (3, 5), ((1, 3), (1, 2)))


def drawn(specs: dict, gain: float) -> dict:
    """Draw parameters of these shapes; nothing is compiled."""
    random = np.random.RandomState(0)

    def draw(path: tuple, spec: jax.ShapeDtypeStruct) -> np.ndarray:
        if spec.ndim < 2:
            return np.full(spec.shape, "scale" in str(path[-1]), np.float32)
        fan_in = spec.shape[-1] if spec.ndim == 2 else spec.shape[0] * spec.shape[1]
        return (gain / fan_in**0.5 * random.standard_normal(spec.shape)).astype(np.float32)

    return jax.tree_util.tree_map_with_path(draw, specs)


@cache
def params() -> dict:
    """The parts' parameters, in the layout for inference; so large that tokens and units vary."""
    return drawn(config.abstract(OMNI, stacked=False), 2.0)


@cache
def vocoder_params(shape: VocoderConfig = VOCODER) -> dict:
    """A vocoder's parameters, with durations that differ."""
    parts = drawn(vocoder.abstract(shape), 1.0)
    parts["durations"]["proj"]["bias"] += 2.5
    return parts

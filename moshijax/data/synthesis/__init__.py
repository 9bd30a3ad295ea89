"""Speech from texts: scripts of calls, spoken in separate processes, mixed to two channels."""

from moshijax.data.synthesis.dialogue import Dialogue, Utterance
from moshijax.data.synthesis.hearing import Listening
from moshijax.data.synthesis.run import SynthesisResult, synthesize
from moshijax.data.synthesis.voices import (
    CASTS,
    ArtifactVoice,
    Cast,
    CosyVoice,
    EndpointVoice,
    EspeakVoice,
    HibariVoice,
    Voice,
    espeak_voice,
    hibari_voice,
)  # fmt: skip
from moshijax.data.synthesis.world import CallRanges, World, draw_calls, parse_world

__all__ = [
    "ArtifactVoice",
    "CosyVoice",
    "EndpointVoice",
    "Listening",
    "CASTS",
    "Cast",
    "CallRanges",
    "Dialogue",
    "EspeakVoice",
    "HibariVoice",
    "SynthesisResult",
    "Utterance",
    "Voice",
    "World",
    "draw_calls",
    "espeak_voice",
    "hibari_voice",
    "parse_world",
    "synthesize",
]

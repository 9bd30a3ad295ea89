"""Speech from texts: scripts of calls, spoken by espeak-ng in a separate process and mixed to two channels."""

from moshijax.data.synthesis.dialogue import Dialogue, Utterance, Voice
from moshijax.data.synthesis.run import SynthesisResult, synthesize
from moshijax.data.synthesis.voices import random_voice
from moshijax.data.synthesis.world import CallRanges, World, draw_calls, parse_world

__all__ = [
    "CallRanges",
    "Dialogue",
    "SynthesisResult",
    "Utterance",
    "Voice",
    "World",
    "draw_calls",
    "parse_world",
    "random_voice",
    "synthesize",
]

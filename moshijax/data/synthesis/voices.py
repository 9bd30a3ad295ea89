"""Synthetic voices, a class for each synthesiser, and random draws from them."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

from moshijax.data.endpoint import Endpoint
from moshijax.errors import DataError


@dataclass(frozen=True)
class EspeakVoice:
    """A voice of espeak-ng.

    Attributes:
      language: of espeak-ng, such as "en-us".
      variant: timbre; "" is the plain one.
      rate: words per minute, 80 to 450.
      pitch: 0 to 99.
      range: of the pitch, 0 to 99.
    """

    language: str = "en-us"
    variant: str = ""
    rate: int = 170
    pitch: int = 50
    range: int = 50

    def __post_init__(self) -> None:
        if not 80 <= self.rate <= 450:
            raise DataError(f"voice rate is {self.rate} words per minute: use 80 to 450")
        for name in ("pitch", "range"):
            if not 0 <= getattr(self, name) <= 99:
                raise DataError(f"voice {name} is {getattr(self, name)}: use 0 to 99")


@dataclass(frozen=True)
class HibariVoice:
    """A voice of hibari: its American female voice with another pitch, intonation, vocal tract and pace.

    Attributes:
      pitch: factor on the fundamental frequency, 0.4 to 2; 1 is about 200 Hz.
      range: factor on the intonation, in octaves around the mean pitch of a sentence, 0 to 2.
      formants: factor on the frequencies of the spectral envelope, 0.7 to 1.4; below 1 is a longer vocal tract.
      speed: factor on the pace, 0.5 to 2; sounds last steps of 25 ms, at least one, so that 1.3 is in fact about 1.14.
    """

    pitch: float = 1.0
    range: float = 1.0
    formants: float = 1.0
    speed: float = 1.0

    def __post_init__(self) -> None:
        for name, lowest, highest in (
            ("pitch", 0.4, 2.0), ("range", 0.0, 2.0), ("formants", 0.7, 1.4), ("speed", 0.5, 2.0),
        ):  # fmt: skip
            if not lowest <= getattr(self, name) <= highest:
                raise DataError(f"voice {name} is {getattr(self, name)}: use {lowest:g} to {highest:g}")


@dataclass(frozen=True)
class EndpointVoice:
    """A voice behind an HTTP end-point of the OpenAI style.

    Attributes:
      url: of the end-point, to which "/audio/speech" is added, such as "http://localhost:8000/v1".
      model: that the server is asked for.
      voice: of the model.
      speed: factor on the pace, 0.25 to 4.
      key: name of the environment variable with the API key; "": none.
    """

    seeded: ClassVar[bool] = False  # a seed changes nothing

    url: str
    model: str
    voice: str
    speed: float = 1.0
    key: str = ""

    def __post_init__(self) -> None:
        if not 0.25 <= self.speed <= 4:
            raise DataError(f"voice speed is {self.speed}: use 0.25 to 4")
        Endpoint(self.url)


@dataclass(frozen=True)
class CosyVoice:
    """A voice of CosyVoice: a speaker of the 300M-SFT model, or any from a recording (CosyVoice 2).

    Attributes:
      folder: of the model.
      speaker: name of a speaker that the model has; "": the voice is that of the prompt.
      prompt: recording of the voice, at most 30 s.
      prompt_text: what is said in it.
      speed: factor on the pace, 0.5 to 2.
    """

    folder: str
    speaker: str = ""
    prompt: str = ""
    prompt_text: str = ""
    speed: float = 1.0

    def __post_init__(self) -> None:
        if bool(self.speaker) == bool(self.prompt) or bool(self.prompt) != bool(self.prompt_text):
            raise DataError("a voice of CosyVoice has a speaker, or a prompt and its prompt_text: give one of the two")
        if not 0.5 <= self.speed <= 2:
            raise DataError(f"voice speed is {self.speed}: use 0.5 to 2")


@dataclass(frozen=True)
class ArtifactVoice:
    """A voice of one of our own models of speech synthesis.

    Attributes:
      folder: of the artifact.
      prompt: recording whose voice is continued; "": none.
      conditions: of the model, NAME=VALUE.
    """

    folder: str
    prompt: str = ""
    conditions: tuple[str, ...] = ()


Voice = EspeakVoice | HibariVoice | EndpointVoice | CosyVoice | ArtifactVoice
#: Voices that do not say when their words are spoken.
UNTIMED = (EndpointVoice, CosyVoice)

# Timbre variants that are clear to a human listener, and far enough from each other to be different people.
CLEAR_VARIANTS = (
    "f1", "f2", "f3", "f5", "m1", "m2", "m3", "m4", "m5", "m7", "m8", "Alex", "Alicia", "Andrea", "Andy", "Denis",
    "Gene", "Jacky", "Lee", "Michael", "adam", "anika", "antonio", "belinda", "benjamin", "david", "ed", "john",
    "linda", "paul", "pablo", "rob", "robert", "steph", "travis", "zac",
)  # fmt: skip


def espeak_voice(
    rng: random.Random,
    variants: tuple[str, ...] = CLEAR_VARIANTS,
    language: str = "en-us",
    rate: tuple[int, int] = (140, 200),
    pitch: tuple[int, int] = (30, 70),
    pitch_range: tuple[int, int] = (30, 70),
) -> EspeakVoice:
    """Draw a voice with a random variant, rate, pitch and pitch range; bounds are inclusive."""
    return EspeakVoice(
        language, rng.choice(variants), rng.randint(*rate), rng.randint(*pitch), rng.randint(*pitch_range)
    )


def hibari_voice(
    rng: random.Random,
    pitch: tuple[float, float] = (0.5, 1.5),
    pitch_range: tuple[float, float] = (0.5, 1.5),
    formants: tuple[float, float] = (0.82, 1.2),
    speed: tuple[float, float] = (0.8, 1.3),
) -> HibariVoice:
    """Draw a voice; every factor is uniform in its logarithm, and rounded to three digits."""
    factors = (math.exp(rng.uniform(*map(math.log, bounds))) for bounds in (pitch, pitch_range, formants, speed))
    return HibariVoice(*(round(factor, 3) for factor in factors))


@dataclass(frozen=True)
class Cast:
    """Who speaks in the calls of a set.

    Attributes:
      model: voice of the model, the same in every call.
      user: draws the voice of a user.
    """

    model: Voice
    user: Callable[[random.Random], Voice]


CASTS = {
    "espeak-ng": Cast(EspeakVoice("en-us", "f4", 165, 50, 50), espeak_voice),
    "hibari": Cast(HibariVoice(), hibari_voice),
}

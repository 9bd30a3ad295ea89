"""Scripts of calls: who says what, in which voice, and when it starts relative to what came before."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from moshijax.data.synthesis.voices import EspeakVoice, Voice
from moshijax.errors import DataError

SPEAKERS = ("model", "user")
KINDS = ("turn", "backchannel", "interruption")
GAP = 0.3  # seconds


@dataclass(frozen=True)
class Utterance:
    """One stretch of speech on one channel.

    Attributes:
      speaker: "model" or "user".
      text: at least one word.
      kind: "turn" starts `gap` seconds after the last turn ends; "backchannel" starts at fraction `at` of the last
        turn, which continues; "interruption" too, but the speaker of the last turn stops `yield_after` seconds later.
      gap: seconds; negative: it overlaps the end of the last turn, but never begins before it; None: `GAP`, or what is
        drawn (`moshijax.data.synthesis.timing`).
      at: fraction of the last turn, 0 to 1.
      yield_after: seconds.
      voice: None: the one that the dialogue gives the speaker.
    """

    speaker: str
    text: str
    kind: str = "turn"
    gap: float | None = None
    at: float = 0.5
    yield_after: float = 0.3
    voice: Voice | None = None

    def __post_init__(self) -> None:
        if self.speaker not in SPEAKERS:
            raise DataError(f"speaker {self.speaker!r} in a dialogue: use 'model' or 'user'")
        if self.kind not in KINDS:
            raise DataError(f"utterance kind {self.kind!r}: use one of {', '.join(KINDS)}")
        if not self.text.strip():
            raise DataError("an utterance has no text: write at least one word")
        if not 0.0 <= self.at <= 1.0:
            raise DataError(f"utterance starts at {self.at} of the last turn: use a fraction from 0 to 1")


@dataclass(frozen=True)
class Dialogue:
    """One call to be synthesised.

    Attributes:
      id: names the files; unique in a set.
      utterances: in order, beginning with a turn.
      model_voice: of the model's utterances.
      user_voice: of the user's.
      lead: seconds of quiet before the first utterance.
      tail: seconds of quiet after the last.
      duration: fixed length of the recording in seconds, beyond which speech is an error; None: as long as it takes.
      grid: seconds; the model's utterances begin at the next multiple. 0: anywhere. With the length of a codec's frame
        the same words in the same voice are nearly the same codes.
      gain_db: scales the user's channel.
      snr_db: adds white noise to the user's channel, relative to its speech; None: no noise.
      meta: copied into the sidecar file.
    """

    id: str
    utterances: tuple[Utterance, ...] = ()
    model_voice: Voice = EspeakVoice()
    user_voice: Voice = EspeakVoice(variant="f3")
    lead: float = 0.4
    tail: float = 0.6
    duration: float | None = None
    grid: float = 0.0
    gain_db: float = 0.0
    snr_db: float | None = None
    meta: dict[str, Any] = field(default_factory=dict, hash=False, compare=False)

    def __post_init__(self) -> None:
        if not self.id or any(c in self.id for c in "/\\\0") or self.id.startswith("."):
            raise DataError(f"dialogue id {self.id!r} cannot name a file: use letters, digits, '-' and '_'")
        if self.grid < 0:
            raise DataError(f"dialogue {self.id!r} has a grid of {self.grid} s: use 0 (none) or more")
        if not self.utterances and self.duration is None:
            raise DataError(f"dialogue {self.id!r} has no utterances: give it some, or a duration of silence")
        if self.utterances and self.utterances[0].kind != "turn":
            raise DataError(f"dialogue {self.id!r} begins with a {self.utterances[0].kind}: begin with a turn")

    def voice_of(self, utterance: Utterance) -> Voice:
        """Return the voice in which an utterance is spoken."""
        if utterance.voice is not None:
            return utterance.voice
        return self.model_voice if utterance.speaker == "model" else self.user_voice

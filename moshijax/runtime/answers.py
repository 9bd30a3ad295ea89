"""Spoken answers to spoken questions, one after the other, from an artifact of LLaMA-Omni.

    answers = Answers(load("artifact"))
    for piece in answers.answer(pcm_N, AnswerOptions(omega=10)):
        play(piece.pcm)

A caller has an `Answers` of his own, and with it caches of his own; the weights are shared. Between two pieces nothing
is under way that another caller would have to wait for, so answers can take turns, and one that is no longer wanted is
just left.
"""

from __future__ import annotations

import codecs
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.runtime import manifest
from moshijax.runtime.checks import check_sampling, split_seed
from moshijax.runtime.programs import Programs, opened
from moshijax.runtime.unit_voice import UNITS, UnitVoice, VoiceShape

if TYPE_CHECKING:
    from jaxtyping import Float

#: Stands for an embedding of the question among the ids of a prompt.
SPEECH = -200
#: Units per piece of the published table of latencies.
OMEGAS = (10, 20, 40, 60, 80, 100)
#: Samples below this are silence; half the smallest step of 16 bits.
QUIETEST = 2.0**-16


def load(path: str | Path, platform: str | None = None, verify: bool = True) -> AnswerArtifact:
    """Load an artifact that answers questions; arguments and errors as `moshijax.runtime.load`.

    Raises:
      ConfigError: it takes calls.
    """
    path = Path(path)
    description = manifest.read(path)
    if description["config"]["policy"]["type"] != manifest.ANSWER:
        raise ConfigError(f"{path} takes calls and answers no single questions; load it with moshijax.runtime.load")
    return AnswerArtifact(path, description, opened(path, description, platform), verify)


class AnswerArtifact(Programs):
    """A loaded artifact of LLaMA-Omni.

    Attributes:
      sample_rate, frame_size, frame_seconds: of questions and answers, and of the frames of a half-duplex call.
      clip: samples of the longest question.
      max_delay, policy, hears, speaks, takes_words, encodes: as those of `moshijax.runtime.Artifact`.
    """

    compared = ("encode_speech", "decode_token", "decode_units")
    sampled = "decode_token"
    max_delay = 0
    hears, speaks, takes_words, encodes = True, True, False, False

    def __init__(self, path: Path, description: dict[str, Any], platform: str, verify: bool = True):
        super().__init__(path, description, platform, verify)
        self.sample_rate: int = description["audio"]["sample_rate"]
        self.frame_size: int = description["audio"]["frame_size"]
        self.frame_seconds = self.frame_size / self.sample_rate
        self.policy: dict[str, Any] = description["config"]["policy"]
        self.clip: int = description["answer"]["clip"]

    def prompt(self, samples: int) -> list[int]:
        """Return the ids of the prompt of a question of so many samples, `SPEECH` for each of its embeddings."""
        said = self.manifest["prompt"]
        rows = min(said["rows"], samples // said["row_samples"]) if said["trim"] else said["rows"]
        return [*said["before"], *[SPEECH] * rows, *said["after"]]

    def check_question(self, pcm_N: Float[np.ndarray, " N"]) -> Float[np.ndarray, " N"]:
        """Return a question as float32.

        Raises:
          ConfigError: it is no waveform.
          DataError: it is too long, too short, silent or not finite.
        """
        pcm = np.asarray(pcm_N, np.float32)
        rate, least = self.sample_rate, self.manifest["prompt"]["row_samples"]
        if pcm.ndim != 1:
            raise ConfigError(f"a question must be [N], got {list(pcm.shape)}")
        if not least <= len(pcm) <= self.clip:
            raise DataError(
                f"a question of {len(pcm) / rate:.2f} s: must be {least / rate:g} to {self.clip / rate:g} s long; cut "
                "it, or ask in parts"
            )
        if not np.isfinite(pcm).all():
            raise DataError("the question holds NaN or Inf; samples must be finite, in [-1, 1]")
        if np.abs(pcm).max() < QUIETEST:
            raise DataError("the question is silent; record it again")
        return pcm


@dataclass(frozen=True)
class AnswerOptions:
    """How a question is answered.

    Attributes:
      seed: any integer of up to 64 bits.
      sampling: any of text_temperature and text_top_k; the rest are the artifact's defaults.
      omega: units before a piece of sound is made; None: the artifact's default.
    """

    seed: int = 0
    sampling: Mapping[str, float] | None = None
    omega: int | None = None


@dataclass(frozen=True)
class Piece:
    """What one token adds to an answer.

    Attributes:
      token: its id.
      text: what it adds to the text; "" while bytes of a character are missing.
      units: units of speech.
      pcm: float32 `[N]`, the sound that is made now, of this token and earlier ones; often none.
      seconds: since the question.
      voice_seconds: of these, what the sound of this piece took.
      last: nothing follows.
      complete: the answer came to its end within the tokens that it may have; of the last piece.
    """

    token: int
    text: str
    units: tuple[int, ...]
    pcm: Float[np.ndarray, " N"]
    seconds: float
    voice_seconds: float
    last: bool
    complete: bool


class Answers:
    """The answers to one caller: his caches, and the compiled programs. One thread at a time.

    Args:
      artifact: what `load` returned; the first one compiles its programs.
    """

    def __init__(self, artifact: AnswerArtifact):
        self.artifact = artifact
        names = ("encode_speech", "decode_token", "decode_units")
        self._programs = {(name, None): artifact.program(name) for name in names}
        for name in ("prefill", "durations", "vocode_chunk"):
            self._programs |= {(name, n): artifact.program(name, 1, n) for n in artifact.lengths(name)}
        self._state: Any = artifact.init_state()

    def answer(self, pcm_N: Float[np.ndarray, " N"], options: AnswerOptions | None = None) -> Iterator[Piece]:
        """Answer a question; what the last one was answered is forgotten. Stop iterating to stop the answer.

        Sound is made once `omega` units are new, as far as it is certain (`moshijax.runtime.unit_voice`), and all that
        is left at the end.

        Args:
          pcm_N: float32 in [-1, 1] at the artifact's rate, up to its clip.
          options: how.

        Raises:
          ConfigError: an option out of range, or no waveform.
          DataError: a question that cannot be answered (`AnswerArtifact.check_question`).
        """
        options, said = options or AnswerOptions(), self.artifact.manifest["answer"]
        pcm = self.artifact.check_question(pcm_N)
        omega = said["omega"] if options.omega is None else options.omega
        if omega < 1:
            raise ConfigError(f"omega={omega}: must be 1 or more units")
        sampling = check_sampling(self.artifact, options.sampling or {})
        chosen = {"seed": split_seed(options.seed)[None], **{name: np.array([v]) for name, v in sampling.items()}}
        return self._pieces(pcm, omega, chosen, said["tokens"])

    def _pieces(
        self, pcm: Float[np.ndarray, " N"], omega: int, chosen: dict[str, np.ndarray], most: int
    ) -> Iterator[Piece]:
        began, stop = time.perf_counter(), set(self.artifact.manifest["text"]["stop"])
        token = self._ask(pcm, chosen)
        voice, new = self._voice(), 0
        decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        for number in range(most):
            id_ = int(np.asarray(token["token"])[0])
            ended = id_ in stop
            last = ended or number == most - 1
            units = self._run("decode_units")
            if not last:  # sent before the units are waited for, so that the device always has work
                token = self._run("decode_token", **chosen)
            said = tuple(int(unit) for unit in np.asarray(units["units"])[0] if unit >= 0)
            voice.feed(said)
            new += len(said)
            text = decode(self.artifact.pieces[id_].encode("latin-1") if id_ < len(self.artifact.pieces) else b"", last)
            before, sound = time.perf_counter(), np.zeros(0, np.float32)
            if new >= omega or last:
                sound = voice.take(done=last)
                new = 0 if len(sound) else new
            now = time.perf_counter()
            yield Piece(id_, text, said, sound, now - began, now - before, last, ended)
            if last:
                return

    def _ask(self, pcm: Float[np.ndarray, " N"], chosen: dict[str, np.ndarray]) -> dict[str, Any]:
        """Hear a question and read the prompt; return the first token."""
        padded = np.pad(pcm, (0, self.artifact.clip - len(pcm)))[None]
        self._run("encode_speech", pcm=padded)
        ids, at = self.artifact.prompt(len(pcm)), 0
        lengths = self.artifact.lengths("prefill")
        while at < len(ids):
            length = next((length for length in lengths if length >= len(ids) - at), lengths[-1])
            piece = np.zeros((1, length), np.int32)
            here = ids[at : at + length]
            piece[0, : len(here)] = here
            token = self._run("prefill", length, ids=piece, length=np.array([len(here)], np.int32), **chosen)
            at += len(here)
        return token

    def _run(self, name: str, n: int | None = None, **inputs: np.ndarray) -> dict[str, Any]:
        program = self._programs[name, n]
        inputs = {key: np.asarray(value, program.specs[key][1]) for key, value in inputs.items()}
        self._state, outputs = program(self.artifact.weights, self._state, inputs)
        return outputs

    def _voice(self) -> UnitVoice:
        said = self.artifact.manifest["voice"]

        def run(name: str, length: int, window: np.ndarray, output: str) -> Any:
            _, outputs = self._programs[name, length](self.artifact.weights, {}, {"units": window})
            return outputs[output]

        shape = VoiceShape(**said, lengths=tuple(self.artifact.lengths("vocode_chunk")))
        sides = 2 * shape.reach_frames
        return UnitVoice(
            shape,
            lambda window: run("durations", UNITS, window, "frames"),
            lambda window: run("vocode_chunk", window.shape[1] - sides, window, "pcm"),
        )


@dataclass(frozen=True)
class Latency:
    """The time to the first sound of an answer.

    Attributes:
      omega: units before a piece of sound is made; None: the whole answer.
      text_ms: until there were so many: hearing the question, the prompt, tokens and units.
      voice_ms: what the vocoder took.
      units: that had been made then.
      sound_ms: of the first piece of sound.
    """

    omega: int | None
    text_ms: float
    voice_ms: float
    units: int
    sound_ms: float

    @property
    def total_ms(self) -> float:
        """Time to the first sound."""
        return self.text_ms + self.voice_ms


def latency(answers: Answers, pcm_N: Float[np.ndarray, " N"], options: AnswerOptions, omega: int | None) -> Latency:
    """Answer a question until its first sound; errors as in `Answers.answer`."""
    whole = 10**9
    units = 0
    voice = 0.0
    for piece in answers.answer(pcm_N, AnswerOptions(options.seed, options.sampling, omega or whole)):
        units, voice = units + len(piece.units), voice + piece.voice_seconds
        if len(piece.pcm) or piece.last:
            break
    sound = len(piece.pcm) / answers.artifact.sample_rate
    return Latency(omega, 1000 * (piece.seconds - voice), 1000 * voice, units, 1000 * sound)

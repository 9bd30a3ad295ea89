"""What a call begins with: a voice to speak with, and a text that the model is told.

Conversations follow the protocol of PersonaPlex (NVIDIA): the voice in the model's rows, a gap, the text, one piece per
frame, a gap; meanwhile the user's rows carry a tone. Synthesis continues a recording of the voice, without its text.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.runtime import audio
from moshijax.runtime.artifact import Artifact
from moshijax.runtime.loudness import loudness
from moshijax.tokens import UNGENERATED, ZERO

GAP_SECONDS = 0.5  # of silence after the voice and after the text
LEVEL = -24.0  # LUFS to which a voice is brought
SHORTEST_SECONDS = 0.4  # below this a loudness cannot be measured
TONE_HZ, TONE_LEVEL = 440.0, 0.5
SETTLE_SECONDS = 1.0  # of silence or tone before its codes are taken
INCOMPLETE_FRAMES = 2  # at the end of a recording, not continued from


@dataclass(frozen=True)
class Prompt:
    """A checked prompt, not encoded yet.

    Attributes:
      voice: samples `[N]` at the loudness of `LEVEL`, or None.
      pieces: of the text that the model is told.
      continued: the sound of the voice is continued (synthesis); otherwise a conversation begins.
      length: columns of the grid that it takes.
      hidden: columns of them that guidance hides.
    """

    voice: np.ndarray | None
    pieces: tuple[int, ...]
    continued: bool
    length: int
    hidden: int

    def columns(self, artifact: Artifact) -> Iterator[None]:
        """Encode the voice, one block each time the iterator is advanced; its value is the columns `[K, T]`."""
        codes = None
        if self.voice is not None:
            codes = yield from encoding(artifact, self.voice)
        if self.continued:
            return self._continued(artifact, codes)
        time = np.arange(round(SETTLE_SECONDS * artifact.sample_rate)) / artifact.sample_rate
        for name, level in (("silence", 0.0), ("tone", TONE_LEVEL)):
            if name not in artifact.constants:
                codes_QT = yield from encoding(artifact, level * np.sin(2 * np.pi * TONE_HZ * time))
                artifact.constants[name] = codes_QT[:, -1]
        return self._conversation(artifact, codes)

    def _continued(self, artifact: Artifact, codes_QT: np.ndarray) -> np.ndarray:
        """Return no text at first, and the sound of the recording as far behind as all sound of this model."""
        delay = artifact.policy["audio_delay"]
        columns = np.full((len(artifact.streams), self.length), UNGENERATED, np.int32)
        columns[0, : self.length - delay] = ZERO
        for row, stream in enumerate(artifact.streams):
            if stream["kind"] == "audio":
                columns[row, delay:] = codes_QT[stream["codebook"], : self.length - delay]
        return columns

    def _conversation(self, artifact: Artifact, codes_QT: np.ndarray | None) -> np.ndarray:
        silence_Q, tone_Q = artifact.constants["silence"], artifact.constants["tone"]
        voiced = 0 if codes_QT is None else codes_QT.shape[1]
        begins = _conversation_begins(artifact, voiced)
        columns = np.empty((len(artifact.streams), self.length), np.int32)
        for row, stream in enumerate(artifact.streams):
            if stream["kind"] == "text":
                columns[row] = artifact.manifest["text"]["special"]["pad"]
                columns[row, begins : begins + len(self.pieces)] = self.pieces
            elif stream["given"]:
                columns[row] = tone_Q[stream["codebook"]]
            else:
                columns[row] = silence_Q[stream["codebook"]]
                if voiced:
                    columns[row, :voiced] = codes_QT[stream["codebook"]]
        return columns


def make(artifact: Artifact, voice: np.ndarray | None, text: str | None) -> Prompt | None:
    """Return the prompt that `moshijax.runtime.CallOptions` takes; None without voice and text.

    Args:
      artifact: what the call runs on.
      voice: a recording `[N]` at the artifact's sample rate.
      text: what the model is told.

    Raises:
      ConfigError: the artifact takes no such prompt, or none longer than half its memory.
      DataError: a recording that is silent, too short, not finite or beyond [-1, 1].
    """
    if voice is None and text is None:
        return None
    if voice is not None:
        voice = checked(voice, artifact.sample_rate)
    if not artifact.encodes:
        raise ConfigError(f"{artifact.path} has no voice that a prompt could begin: omit the prompts of voice and text")
    if artifact.takes_words and text is not None:
        raise ConfigError(f"{artifact.path} speaks the text it is given and is told nothing else: omit the text prompt")
    frames = 0 if voice is None else -(-len(voice) // artifact.frame_size)
    seconds = 0.0 if voice is None else len(voice) / artifact.sample_rate
    pieces = [] if text is None else artifact.tokenize(f"<system> {text} <system>")
    memory = artifact.manifest["config"]["lm"]["temporal"]["context"] * artifact.frame_seconds
    total = seconds + len(pieces) * artifact.frame_seconds
    if total > memory / 2:
        raise ConfigError(
            f"the prompt takes {total:.1f} s ({seconds:.1f} s of voice, {len(pieces)} pieces of text): it must be at "
            f"most {memory / 2:.1f} s, half of what the model remembers; shorten it"
        )
    if artifact.takes_words:
        length = max(1, frames - INCOMPLETE_FRAMES) + artifact.policy["audio_delay"]
        return Prompt(voice, (), True, length, length)
    length = _conversation_begins(artifact, frames) + (len(pieces) + _gap(artifact) if pieces else 0)
    return Prompt(voice, tuple(pieces), False, length, 0)


def _gap(artifact: Artifact) -> int:
    return round(GAP_SECONDS * artifact.sample_rate / artifact.frame_size)


def _conversation_begins(artifact: Artifact, voiced: int) -> int:
    """Return the column in which the text begins."""
    return voiced + _gap(artifact) if voiced else 0


def encoding(artifact: Artifact, pcm: np.ndarray) -> Iterator[None]:
    """Encode a waveform `[N]`, one block each time the iterator is advanced; its value is `[Q, T]` int32.

    N is filled up to whole frames with silence.
    """
    [length] = artifact.lengths("encode")
    program = artifact.program("encode", 1, length)
    frames = -(-len(pcm) // artifact.frame_size)
    blocks = np.pad(np.asarray(pcm, np.float32), (0, -len(pcm) % (length * artifact.frame_size)))
    state = {name: np.zeros(shape, dtype) for name, (shape, dtype) in program.state_specs.items()}
    codes = []
    for number, block in enumerate(blocks.reshape(-1, 1, length * artifact.frame_size)):
        inputs = {"reset": np.array([number == 0]), "pcm": block}
        state, outputs = program(artifact.weights, state, inputs)
        codes.append(outputs["codes"])
        yield
    return np.concatenate(jax.device_get(codes), axis=2)[0, :, :frames]


def run(work: Iterator[None]) -> np.ndarray:
    """Advance an iterator to its end and return its value."""
    while True:
        try:
            next(work)
        except StopIteration as end:
            return end.value


class PromptSteps:
    """What the first executed steps of a call are told, made of the columns `[K, L]` of its prompt.

    Executed step n (from 0) samples text of column n and codebook k of column n - delay_k, and takes in the given rows
    of column n - 1.

    Attributes:
      given: int32 `[G, L + 1]`, codes in place of what is heard.
      text, codes: int32 `[F]` and `[Q, F]`, what text and audio are forced to, UNGENERATED = free.
      forced: F, steps in which something is forced.
      certain: steps from the beginning in which everything is known, so that nothing has to be sampled.
      voice: int32 `[Q, certain]`, codes of the columns that these steps would return, negative where there are none.

    Raises:
      ConfigError: a wrong shape, or ids that the streams do not have.
    """

    def __init__(self, artifact: Artifact, columns: np.ndarray):
        streams, columns = artifact.streams, np.asarray(columns)
        if columns.ndim != 2 or len(columns) != len(streams) or columns.dtype.kind not in "iu" or not columns.size:
            raise ConfigError(
                f"a prompt must be integers [{len(streams)}, T] with T > 0, got {columns.dtype} {list(columns.shape)}"
            )
        for stream, tokens in zip(streams, columns, strict=True):
            low = 0 if stream["given"] else UNGENERATED
            bad = tokens[(tokens < low) | (tokens >= stream["card"]) | ((tokens == ZERO) & (stream["kind"] != "text"))]
            if bad.size:
                raise ConfigError(
                    f"prompt of stream {stream['name']} holds {int(bad[0])}; ids are 0 to {stream['card'] - 1}"
                )
        length, most = columns.shape[1], artifact.max_delay
        self.forced = length + most
        # Free columns on both sides, so that every step finds one.
        free = np.full((len(streams), most + 1), UNGENERATED, np.int32)
        padded = np.concatenate([free, columns.astype(np.int32), free], axis=1)

        def shifted(row: int, delay: int, count: int = self.forced) -> np.ndarray:
            start = most + 1 - delay
            return padded[row, start : start + count]

        audio_rows = [row for row, stream in enumerate(streams) if stream["generated"] and stream["kind"] == "audio"]
        given_rows = [row for row, stream in enumerate(streams) if stream["given"]]
        self.text = shifted(0, 0)
        self.codes = _stacked([shifted(row, streams[row]["delay"]) for row in audio_rows], self.forced)
        self.given = _stacked([np.maximum(shifted(row, 1, length + 1), 0) for row in given_rows], length + 1)
        # No codes are wanted before the call begins, nor before the audio of a synthesis does.
        delays = np.array([streams[row]["delay"] for row in audio_rows], np.int32)
        wanted = np.arange(self.forced) >= delays[:, None] + artifact.policy.get("audio_delay", 0)
        known = (self.text != UNGENERATED) & ~(wanted & (self.codes == UNGENERATED)).any(axis=0)
        self.certain = int(np.argmin([*known, False]))
        returned = _stacked([shifted(row, most) for row in audio_rows], self.forced)
        returned[:, : max(most, 1)] = UNGENERATED
        self.voice = returned[:, : self.certain]

    def block(self, inputs: dict[str, np.ndarray], start: int) -> dict[str, np.ndarray]:
        """Fill the inputs of `prefill` with as many of the certain steps from `start` on as it takes."""
        length = min(inputs["force_text"].shape[1], self.certain - start)
        inputs["length"][:] = length
        steps = slice(start, start + length)
        inputs["force_text"][0, :length] = self.text[steps]
        # (free ones are not wanted)
        inputs["force_codes"][0, :, :length] = np.maximum(self.codes[:, steps], 0)
        if "given" in inputs:
            inputs["given"][0, :, :length] = self.given[:, steps]
        if "voice" in inputs:
            inputs["voice"][0, :, :length] = self.voice[:, steps]
        return inputs


def _stacked(rows: list[np.ndarray], length: int) -> np.ndarray:
    return np.stack(rows) if rows else np.zeros((0, length), np.int32)


def read_voice(path: str | Path, rate: int) -> np.ndarray:
    """Read a recording `[N]` at `rate`.

    Raises:
      DataError: embeddings that PersonaPlex saved; otherwise as `audio.read_mixed`.
    """
    if Path(path).suffix == ".pt":
        raise DataError(f"{path} holds embeddings of a voice, not its sound; give a recording of the voice (WAV)")
    return audio.read_mixed(path, rate)


def checked(voice: np.ndarray, rate: int) -> np.ndarray:
    """Return the recording at the loudness of `LEVEL`, or as loud as it can be within [-1, 1].

    Raises:
      DataError: it is silent, too short, not finite or beyond [-1, 1].
    """
    voice = np.asarray(voice, np.float32)
    if voice.ndim != 1 or not voice.size:
        raise DataError(f"a voice prompt must be one channel of samples [N], got {list(voice.shape)}")
    if not np.isfinite(voice).all() or np.abs(voice).max() > 1.0:
        raise DataError("a voice prompt must be finite samples in [-1, 1]; convert the recording to that range")
    if len(voice) < SHORTEST_SECONDS * rate:
        raise DataError(
            f"the voice prompt has {len(voice) / rate:.2f} s, at least {SHORTEST_SECONDS} s are needed; record more"
        )
    level = loudness(voice, rate)
    if level == -np.inf:
        raise DataError("the voice prompt is silent (below -70 LUFS); record a voice")
    return voice * np.float32(min(10 ** ((LEVEL - level) / 20), 1.0 / float(np.abs(voice).max())))

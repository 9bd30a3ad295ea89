"""What a call begins with: a voice to speak with, and a text that the model is told.

Conversations follow the protocol of PersonaPlex (NVIDIA): the voice in the model's rows, a gap, the text, one piece per
frame, a gap; meanwhile the user's rows carry a tone. Synthesis continues a recording of the voice, without its text.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.runtime import audio
from moshijax.runtime.loudness import loudness
from moshijax.runtime.rows import UNGENERATED, ZERO, Program

GAP_SECONDS = 0.5  # of silence after the voice and after the text
LEVEL = -24.0  # LUFS to which a voice is brought
SHORTEST_SECONDS = 0.4  # of which a loudness can be said
TONE_HZ, TONE_LEVEL = 440.0, 0.5
SETTLE_SECONDS = 1.0  # of silence or tone before its codes are taken
INCOMPLETE_FRAMES = 2  # at the end of a recording, not continued from


def build(program: Program, voice: np.ndarray | None, text: str | None) -> tuple[np.ndarray | None, int]:
    """The prompt `[K, T]` that `runtime.Program.open` takes, and the columns of it that guidance hides.

    voice: a recording `[N]` at the program's sample rate. text: what the model is told.

    Raises: ConfigError (the artifact takes no such prompt, or one longer than half its memory), DataError (a recording
    that is silent, too short, not finite or beyond [-1, 1]).
    """
    if voice is None and text is None:
        return None, 0
    if voice is not None:
        voice = checked(voice, program.sample_rate)
    speaks = program.has_text_in
    if "encode" not in program.manifest["inputs"]:
        raise ConfigError(f"{program.artifact} has no voice that a prompt could begin; leave the prompts away")
    if speaks and text is not None:
        raise ConfigError(
            f"{program.artifact} speaks the text it is given and is told nothing else: leave --text-prompt"
        )
    seconds = 0.0 if voice is None else len(voice) / program.sample_rate
    pieces = [] if text is None else program.tokenize(f"<system> {text} <system>")
    frame = program.frame_size / program.sample_rate
    memory = program.manifest["config"]["lm"]["temporal"]["context"] * frame
    length = seconds + len(pieces) * frame
    if length > memory / 2:
        raise ConfigError(
            f"the prompt takes {length:.1f} s ({seconds:.1f} s of voice, {len(pieces)} pieces of text): it must be at "
            f"most {memory / 2:.1f} s, half of what the model remembers; shorten it"
        )
    codes = None if voice is None else program.encode(voice)
    return _continued(program, codes) if speaks else (_conversation(program, codes, pieces), 0)


def read_voice(path: str | Path, rate: int) -> np.ndarray:
    """A recording `[N]` at `rate`. Raises: as `audio.read_mixed`; DataError for embeddings that PersonaPlex saved."""
    if Path(path).suffix == ".pt":
        raise DataError(f"{path} holds embeddings of a voice, not its sound; give a recording of the voice (WAV)")
    return audio.read_mixed(path, rate)


def checked(voice: np.ndarray, rate: int) -> np.ndarray:
    """The recording at the loudness of `LEVEL`, or as loud as it can be within [-1, 1]."""
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


def _continued(program: Program, codes_QT: np.ndarray) -> tuple[np.ndarray, int]:
    """No text at first, and the sound of the recording as far behind as all sound of this model."""
    delay, streams = program.policy["audio_delay"], program.manifest["layout"]["streams"]
    codes_QT = codes_QT[:, : max(1, codes_QT.shape[1] - INCOMPLETE_FRAMES)]
    frames = codes_QT.shape[1]
    prompt = np.full((len(streams), frames + delay), UNGENERATED, np.int32)
    prompt[0, :frames] = ZERO
    for row, stream in enumerate(streams):
        if stream["kind"] == "audio":
            prompt[row, delay:] = codes_QT[stream["codebook"]]
    return prompt, frames + delay


def _conversation(program: Program, codes_QT: np.ndarray | None, pieces: list[int]) -> np.ndarray:
    rate = program.sample_rate
    time = np.arange(round(SETTLE_SECONDS * rate)) / rate
    silence_Q = program.encode(np.zeros_like(time))[:, -1]
    tone_Q = program.encode(TONE_LEVEL * np.sin(2 * np.pi * TONE_HZ * time))[:, -1]
    gap = round(GAP_SECONDS * rate / program.frame_size)
    voiced = 0 if codes_QT is None else codes_QT.shape[1]
    begins = voiced + gap if voiced else 0  # of the text
    length = begins + (len(pieces) + gap if pieces else 0)
    streams = program.manifest["layout"]["streams"]
    prompt = np.empty((len(streams), length), np.int32)
    for row, stream in enumerate(streams):
        if stream["kind"] == "text":
            prompt[row] = program.manifest["text"]["special"]["pad"]
            prompt[row, begins : begins + len(pieces)] = pieces
        elif stream["given"]:
            prompt[row] = tone_Q[stream["codebook"]]
        else:
            prompt[row] = silence_Q[stream["codebook"]]
            if voiced:
                prompt[row, :voiced] = codes_QT[stream["codebook"]]
    return prompt

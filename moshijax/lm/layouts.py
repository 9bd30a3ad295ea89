"""What the rows of a token grid are: streams, their delays, and which of them the model writes.

A grid is `[B, K, T]` int32, one column per 80 ms frame. Row 0 is text. Then come the audio rows with a step of the
depth transformer (generated, or scored in training), then the rows that are only given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from moshijax.annotations import Frames, Parts
from moshijax.errors import ConfigError


@dataclass(frozen=True)
class Stream:
    """One row of the grid.

    Attributes:
      kind: "text" or "audio".
      speaker: whose voice or text it is, such as "model" or "user".
      codebook: level of the codec, 0 = semantic; None for text.
      delay: frames by which the row is shifted right before the model sees it.
      given: its tokens come from outside.
      generated: the model samples its tokens; exactly one of this and `given`.
      scored: it has a loss.
    """

    kind: str
    speaker: str
    codebook: Parts | None = None
    delay: Frames = 0
    given: bool = False
    generated: bool = True
    scored: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("text", "audio"):
            raise ConfigError(f"kind={self.kind!r} of a stream: must be text or audio")
        if not isinstance(self.delay, int) or self.delay < 0:
            raise ConfigError(
                f"delay={self.delay!r} of a {self.kind} stream: must be a whole number of frames, 0 or more"
            )
        if self.given == self.generated:
            raise ConfigError(f"{self.kind} stream of {self.speaker!r}: set exactly one of given and generated")
        if (self.codebook is None) != (self.kind == "text"):
            raise ConfigError(f"codebook={self.codebook!r} of a {self.kind} stream: audio has a level, text has none")


@dataclass(frozen=True)
class StreamLayout:
    """The rows of a grid, in order.

    Attributes:
      streams: text first, then audio rows that are generated, then those that are only scored, then those only given.
    """

    streams: tuple[Stream, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "streams", tuple(self.streams))
        kinds = [stream.kind for stream in self.streams]
        if not kinds or kinds[0] != "text" or "text" in kinds[1:]:
            raise ConfigError(f"rows are {kinds}: row 0 must be the text stream and the others audio")
        if not self.streams[0].generated:
            raise ConfigError("the text stream is given: make it generated and force its tokens where they are known")
        # generated, then scored but given, then only given
        ranks = [0 if stream.generated else 1 if stream.scored else 2 for stream in self.streams[1:]]
        if ranks != sorted(ranks):
            raise ConfigError(
                "audio rows must be ordered: generated, then scored, then only given; reorder the streams"
            )

    @property
    def num_streams(self) -> int:
        """K, rows of the grid."""
        return len(self.streams)

    @property
    def n_q(self) -> int:
        """Audio rows."""
        return len(self.streams) - 1

    @property
    def dep_q(self) -> int:
        """Audio rows with a step of the depth transformer: rows `1 .. dep_q`."""
        return sum(stream.generated or stream.scored for stream in self.streams[1:])

    @property
    def delays(self) -> tuple[int, ...]:
        """Frames by which each row is shifted right."""
        return tuple(stream.delay for stream in self.streams)

    @property
    def max_delay(self) -> int:
        """The largest of the delays."""
        return max(self.delays)

    @property
    def model_rows(self) -> tuple[int, ...]:
        """Rows that generation writes and returns, text first: always `0 .. n`."""
        return tuple(k for k, stream in enumerate(self.streams) if stream.generated)

    @property
    def given_rows(self) -> tuple[int, ...]:
        """Rows whose tokens generation takes from its caller."""
        return tuple(k for k, stream in enumerate(self.streams) if stream.given)

    @property
    def scored_rows(self) -> tuple[int, ...]:
        """Rows with a loss."""
        return tuple(k for k, stream in enumerate(self.streams) if stream.scored)

    def rows(self, speaker: str, kind: str = "audio") -> tuple[int, ...]:
        """Return the rows of one speaker, by codebook."""
        return tuple(k for k, s in enumerate(self.streams) if s.speaker == speaker and s.kind == kind)


MODEL, USER = "model", "user"


def _audio(speaker: str, codebooks: int, acoustic_delay: int, semantic_delay: int = 0, **flags: bool) -> list[Stream]:
    if codebooks < 1:
        raise ConfigError(f"codebooks={codebooks}: must be 1 or more")
    delays = [semantic_delay] + [semantic_delay + acoustic_delay] * (codebooks - 1)
    return [Stream("audio", speaker, q, delay, **flags) for q, delay in enumerate(delays)]


def dialogue(codebooks: int = 8, acoustic_delay: int = 1, score_user: bool = False) -> StreamLayout:
    """Return the layout of two speakers: the model's text and audio are generated, the user's audio is given.

    Args:
      codebooks: of each speaker.
      acoustic_delay: frames by which all codebooks but the first are delayed.
      score_user: train the model on the user's rows too, as in the pre-training of Moshi (arXiv 2410.00037, 3.4.3).
    """
    return StreamLayout(
        (
            Stream("text", MODEL),
            *_audio(MODEL, codebooks, acoustic_delay),
            *_audio(USER, codebooks, acoustic_delay, given=True, generated=False, scored=score_user),
        )
    )


def single_stream(codebooks: int = 8, acoustic_delay: int = 2) -> StreamLayout:
    """Return the layout of one voice with its text, all of it generated: audio pre-training."""
    return StreamLayout((Stream("text", MODEL), *_audio(MODEL, codebooks, acoustic_delay)))


def recognition(codebooks: int = 8, text_delay: int = 0) -> StreamLayout:
    """Return the layout of given audio and generated text.

    Usually the text is shifted in the data (in seconds), not by `text_delay` frames.
    """
    given = dict(given=True, generated=False, scored=False)
    return StreamLayout((Stream("text", USER, delay=text_delay), *_audio(USER, codebooks, 0, **given)))


def synthesis(
    codebooks: int = 8, acoustic_delay: int = 2, audio_delay: int = 0, two_speakers: bool = False
) -> StreamLayout:
    """Return the layout of text whose words are forced, and generated audio.

    Args:
      codebooks: of each speaker.
      acoustic_delay: frames by which all codebooks but the first are delayed.
      audio_delay: frames by which all audio is behind the text.
      two_speakers: both of a conversation are generated.
    """
    speakers = (MODEL, USER) if two_speakers else (MODEL,)
    rows = [row for speaker in speakers for row in _audio(speaker, codebooks, acoustic_delay, audio_delay)]
    return StreamLayout((Stream("text", MODEL), *rows))


def text_only() -> StreamLayout:
    """Return the layout of a language model of text: pre-training of the temporal transformer."""
    return StreamLayout((Stream("text", MODEL),))


def from_delays(delays: Sequence[int], dep_q: int, hears: bool = False) -> StreamLayout:
    """Return the layout of a published config: text, `dep_q` generated audio rows, and given rows for the rest.

    A second speaker among the generated rows is recognised by its delays: they repeat those of the first half.

    Args:
      delays: of the text row, then of the audio rows.
      dep_q: generated audio rows.
      hears: the second speaker's rows are given, and predicted only in training (`dialogue` with `score_user`).

    Raises:
      ConfigError: `dep_q` does not fit the number of rows.
    """
    audio = list(delays[1:])
    n_q = len(audio)
    if not 0 <= dep_q <= n_q:
        raise ConfigError(f"dep_q={dep_q} with {n_q} audio rows: must be between 0 and the number of audio rows")
    half = dep_q // 2
    both = dep_q == n_q and dep_q % 2 == 0 and max(audio, default=0) > 0 and audio[:half] == audio[half:dep_q]
    streams = [Stream("text", USER if dep_q == 0 else MODEL, delay=int(delays[0]))]
    for row in range(n_q):
        if row < dep_q:
            speaker, level = (USER, row - half) if both and row >= half else (MODEL, row)
            given = hears and speaker == USER
            streams.append(Stream("audio", speaker, level, int(audio[row]), given=given, generated=not given))
        else:
            level, delay = row - dep_q, int(audio[row])
            streams.append(Stream("audio", USER, level, delay, given=True, generated=False, scored=False))
    return StreamLayout(tuple(streams))

"""Checks that recordings are fit to train on. Every finding has a name, is counted, and names the file.

Findings either reject an item or flag it; `--strict` turns flags into rejections.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from moshijax.data import audio
from moshijax.data.diarization import Segment, read_segments
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item
from moshijax.data.transcript import SPEAKERS, UnknownSpeaker, Word, parse_alignments, read_sidecar
from moshijax.errors import ConfigError, DataError

_ENVELOPE_SECONDS = 0.02
SPEECH_RMS = 10 ** (-45 / 20)  # of 20 ms, above which a channel is not silent
_CLIPPED_SHARE = 1e-3
_CLIP = 0.999
_DC = 0.05
_SAME = 0.98
_SWAPPED = 4.0  # amplitude ratio
_LATE = 0.5  # seconds

STREAMS = ("two", "mixed", "diarized")


@dataclass(frozen=True)
class CheckRules:
    """How items are judged.

    Attributes:
      frame_seconds: tolerance of the manifest's duration.
      channels: (model, user) channel numbers of files with more than two; None: left and right of two.
      speakers: label in the sidecar -> 'model' or 'user'.
      min_score: alignment scores below it count as low; an item with more than a fifth of them is rejected.
      strict: flagged items are rejected too.
      streams: "two": a channel each for the model's speaker and the user; "mixed": everybody in one stream, from a
        recording of any number of channels, whose labels mean nothing; "diarized": two streams cut out of one by
        the segments of its speakers (`moshijax.data.diarization`).
    """

    frame_seconds: float = 0.08
    channels: tuple[int, int] | None = None
    speakers: Mapping[str, str] = field(default_factory=lambda: dict(SPEAKERS))
    min_score: float = 0.0
    strict: bool = False
    streams: str = "two"

    def __post_init__(self) -> None:
        if self.streams not in STREAMS:
            raise ConfigError(f"streams is {self.streams!r}: it must be one of {', '.join(STREAMS)}")
        if self.streams != "two" and self.channels is not None:
            raise ConfigError(f"streams {self.streams!r} mixes all channels: omit --channels")


@dataclass
class CheckedItem:
    """An item with what was found.

    Attributes:
      item: of the manifest.
      info: header of the recording; None if it could not be read.
      channels: numbers of the channels that are used.
      words: of the transcript, repaired.
      segments: who speaks when, of diarized recordings.
      flags: repairs and doubts, counted.
      rejected: the reason; None if the item is usable.
      kind: of the rejection.
    """

    item: Item
    info: audio.AudioInfo | None = None
    channels: tuple[int, ...] = (0, 1)
    words: list[Word] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    flags: Counter[str] = field(default_factory=Counter)
    rejected: str | None = None
    kind: str | None = None


def check_header(item: Item, rules: CheckRules) -> CheckedItem:
    """Judge what can be known without decoding: header, channels, duration, transcript.

    Raises:
      UnknownSpeaker: which stops the job; every other finding is in the result.
    """
    checked = CheckedItem(item)
    stage = "unreadable"
    try:
        info = checked.info = audio.probe(item.audio)
        stage = "channels"
        if rules.streams == "two":
            checked.channels = audio.channel_map(info, item.audio, rules.channels)
        else:
            checked.channels = tuple(range(info.channels))
        stage = "no_audio"
        if info.num_samples == 0:
            raise DataError(f"recording {item.audio} holds no samples: remove it from the manifest")
        if item.duration is not None and abs(item.duration - info.duration) > rules.frame_seconds:
            checked.flags["duration_mismatch"] += 1
        stage = "transcript"
        content = read_sidecar(item.sidecar)
        speakers = rules.speakers if rules.streams == "two" else None
        words, counts = parse_alignments(content["alignments"], info.duration, speakers, rules.min_score)
        if rules.streams == "diarized":
            stage = "diarization"
            checked.segments = read_segments(item, content)
    except UnknownSpeaker as error:
        raise UnknownSpeaker(f"{item.sidecar}: {error}") from error
    except DataError as error:
        message = str(error)
        named = str(item.audio) in message or str(item.sidecar) in message
        checked.rejected, checked.kind = message if named else f"{item.sidecar}: {message}", stage
        return checked
    checked.words = words
    checked.flags.update(counts)
    if not words:
        checked.flags["no_words"] += 1
    if counts["low_score"] > 0.2 * max(1, len(words)):
        checked.kind = "low_score"
        checked.rejected = f"{item.sidecar}: {counts['low_score']} of {len(words)} words score below {rules.min_score}"
    return checked


def check_recording(item: Item) -> CheckedItem:
    """Judge an item of which only the sound is used: any number of channels, no transcript."""
    checked = CheckedItem(item)
    try:
        checked.info = audio.probe(item.audio)
        if checked.info.num_samples == 0:
            raise DataError(f"recording {item.audio} holds no samples: remove it")
    except DataError as error:
        checked.rejected, checked.kind = str(error), "unreadable"
    return checked


@dataclass
class SignalStatistics:
    """Running figures of a signal of two channels, or of one with everybody in it, fed block by block.

    Attributes:
      sample_rate: in Hz.
      channels: 1 or 2.
      num_samples: per channel, so far.
      clipped: samples at full scale, over all channels.
      bad: samples that are not finite.
      envelope: RMS of every 20 ms, [frames, channels] of every block.
    """

    sample_rate: int
    channels: int = 2
    num_samples: int = 0
    clipped: int = 0
    bad: int = 0
    envelope: list[np.ndarray] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.total = np.zeros(self.channels)
        self.moments = np.zeros((self.channels, self.channels))
        self._rest = np.zeros((self.channels, 0), np.float32)

    def add(self, block: np.ndarray) -> None:
        """Take in a block [n, channels] float32."""
        self.num_samples += len(block)
        signal = np.ascontiguousarray(block.T)  # [2, n]: the passes below are over whole channels
        peak = max(signal.max(initial=0.0), -signal.min(initial=0.0))
        if not np.isfinite(peak):
            finite = np.isfinite(signal)
            self.bad += int((~finite).any(axis=0).sum())
            signal = np.where(finite, signal, 0.0)
        if peak >= _CLIP:
            self.clipped += int((np.abs(signal) >= _CLIP).sum())
        self.total += signal.sum(axis=1)
        self.moments += signal @ signal.T
        signal = np.concatenate([self._rest, signal], axis=1)
        step = round(_ENVELOPE_SECONDS * self.sample_rate)
        count = signal.shape[1] // step
        pieces = signal[:, : count * step].reshape(self.channels, count, step)
        self.envelope.append(np.sqrt(np.einsum("cns,cns->nc", pieces, pieces) / step))
        self._rest = signal[:, count * step :]

    def levels(self) -> np.ndarray:
        """Return the RMS of every 20 ms of the channels, [frames, channels]."""
        return np.concatenate(self.envelope) if self.envelope else np.zeros((0, self.channels), np.float32)

    def rms(self) -> np.ndarray:
        """Return the RMS of the whole channels, [channels]."""
        return np.sqrt(np.diag(self.moments) / max(1, self.num_samples))

    def findings(self, words: list[Word]) -> tuple[Counter[str], str | None, str | None]:
        """Judge the whole signal against the words of its transcript.

        Returns:
          Flags, and the kind and text of a rejection (None, None if there is none).
        """
        flags: Counter[str] = Counter()
        if self.bad:
            return flags, "not_finite", f"{self.bad} samples are NaN or infinite: write the recording again"
        count = max(1, self.num_samples)
        power = np.diag(self.moments) / count
        if self.clipped > _CLIPPED_SHARE * self.channels * count:
            flags["clipped"] += 1
        if np.abs(self.total / count).max() > _DC:
            flags["dc_offset"] += 1
        levels = self.levels()
        loud = (levels > SPEECH_RMS).any(axis=0) if len(levels) else np.zeros(self.channels, bool)
        if words and not loud.any():
            return flags, "silent", "the recording is silent but the transcript has words: check it"
        flags["silent_channel"] += int((~loud).sum())
        if self.channels == 1:
            return +flags, None, None
        if loud.all() and self.moments[0, 1] / count / np.sqrt(power.prod()) > _SAME:
            return flags, "same_channels", "both channels carry the same signal: record the speakers apart"
        if _swapped(levels, words):
            return flags, "swapped", "words of one speaker sound on the other's channel: swap them with --channels 1,0"
        flags["drift"] += _drift(levels, words)
        return +flags, None, None


def _during(levels: np.ndarray, start: float, end: float, column: int) -> np.ndarray:
    return levels[int(max(0.0, start) / _ENVELOPE_SECONDS) : int(end / _ENVELOPE_SECONDS) + 1, column]


def _heard(levels: np.ndarray, words: list[Word]) -> list[Word]:
    """The words with any sound on their channel, up to half a second before or after."""

    def sounds(word: Word) -> bool:
        column = int(levels.shape[1] == 2 and word.speaker == "user")
        return bool((_during(levels, word.start - _LATE, word.end + _LATE, column) > SPEECH_RMS).any())

    return [word for word in words if sounds(word)]


def _active(levels: np.ndarray, words: Iterable[Word], column: int) -> float:
    pieces = [_during(levels, word.start, word.end, column) for word in words]
    pieces = [piece for piece in pieces if len(piece)]
    return float(np.sqrt(np.mean(np.square(np.concatenate(pieces))))) if pieces else 0.0


def _swapped(levels: np.ndarray, words: list[Word]) -> bool:
    """True when every speaker that has words is much louder, during them, on the other's channel."""
    answers = []
    for column, speaker in enumerate(("model", "user")):
        own = [word for word in words if word.speaker == speaker]
        if own and len(levels):
            right, wrong = _active(levels, own, column), _active(levels, own, 1 - column)
            answers.append(wrong > SPEECH_RMS and wrong > _SWAPPED * right)
    return bool(answers) and all(answers)


def _drift(levels: np.ndarray, words: list[Word]) -> int:
    """Channels whose first word and first sound are more than half a second apart, the word being early."""
    drifts = 0
    for column, speaker in enumerate(("model", "user")):
        own = [word for word in words if word.speaker == speaker]
        sounds = np.flatnonzero(levels[:, column] > SPEECH_RMS) if len(levels) else []
        if own and len(sounds):
            drifts += sounds[0] * _ENVELOPE_SECONDS - own[0].start > _LATE
    return drifts


def signal_blocks(checked: CheckedItem, rules: CheckRules, sample_rate: int) -> Iterator[np.ndarray]:
    """Read the recording as it is judged: two channels, or the mean of all as one; blocks [n, channels] float32."""
    for block in audio.blocks(checked.item.audio, sample_rate, checked.channels):
        yield block if rules.streams == "two" else block.mean(axis=1, keepdims=True)


def apply_findings(checked: CheckedItem, statistics: SignalStatistics) -> None:
    """Add what the whole signal says to an item: flags, a rejection, and the words without those that nobody spoke."""
    flags, kind, reason = statistics.findings(checked.words)
    checked.flags.update(flags)
    if kind is not None:
        checked.kind, checked.rejected = kind, f"recording {checked.item.audio}: {reason}"
        return
    heard = _heard(statistics.levels(), checked.words)
    checked.flags["unheard_word"] += len(checked.words) - len(heard)
    checked.flags, checked.words = +checked.flags, heard


def overlap(items: Iterable[Item], others: Iterable[Item]) -> list[tuple[str, str]]:
    """Return the pairs of ids of recordings that hold the same bytes."""

    def sha256(path: Path) -> str | None:
        if not path.is_file():
            return None
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    known = {sha256(item.audio): item.id for item in others}
    known.pop(None, None)
    pairs = [(item.id, known.get(sha256(item.audio))) for item in items]
    return [(name, other) for name, other in pairs if other is not None]


# Doubts and repairs that `strict` turns into rejections; the rest are ordinary properties of good data.
_HARMLESS = {"no_words", "silent_channel", "unsorted", "empty_word"}


def apply_strictness(checked: CheckedItem, rules: CheckRules) -> None:
    """Reject a flagged item if the rules are strict.

    Some flags are ordinary properties of good data and do not count.
    """
    doubts = sorted(name for name in checked.flags if name not in _HARMLESS)
    if rules.strict and checked.rejected is None and doubts:
        checked.kind = doubts[0]
        checked.rejected = f"recording {checked.item.audio} is flagged {', '.join(doubts)}, and --strict refuses flags"


@dataclass
class Report:
    """Counts over a set of items.

    Attributes:
      items: all of them.
      usable: those not rejected.
      seconds: of the usable ones.
      words: of the usable ones.
      flags: items per flag.
      kinds: items per kind of rejection.
      rejected: id and reason of every rejected item.
      flagged: the first item with each flag.
    """

    items: int = 0
    usable: int = 0
    seconds: float = 0.0
    words: int = 0
    flags: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    flagged: dict[str, str] = field(default_factory=dict)

    def add(self, checked: CheckedItem) -> None:
        """Count an item."""
        self.items += 1
        for name in checked.flags:
            self.flags[name] += 1
            self.flagged.setdefault(name, checked.item.id)
        if checked.rejected is not None:
            self.kinds[checked.kind or "rejected"] += 1
            self.rejected.append((checked.item.id, checked.rejected))
        else:
            self.usable += 1
            self.seconds += checked.info.duration
            self.words += len(checked.words)

    def merge(self, other: Report) -> None:
        """Add the counts of other items, which come after these."""
        for name in ("items", "usable", "seconds", "words"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.flags.update(other.flags)
        self.kinds.update(other.kinds)
        self.rejected += other.rejected
        self.flagged = {**other.flagged, **self.flagged}

    def to_json(self) -> dict:
        """Return a form that JSON can hold."""
        return {**vars(self), "flags": dict(self.flags), "kinds": dict(self.kinds)}

    @classmethod
    def from_json(cls, data: dict) -> Report:
        """Return the inverse of `to_json`."""
        rejected = [(name, reason) for name, reason in data["rejected"]]
        return cls(**{**data, "flags": Counter(data["flags"]), "kinds": Counter(data["kinds"]), "rejected": rejected})

    def require_usable(self, where: str | Path, strict: bool = False) -> None:
        """Check that a set can be used.

        Raises:
          DataError: nothing is usable, or `strict` is set and an item was rejected.
        """
        if self.items and not self.usable:
            raise DataError(f"none of the {self.items} items of {where} is usable; the first: {self.rejected[0][1]}")
        if strict and self.rejected:
            raise DataError(
                f"{len(self.rejected)} of {self.items} items of {where} are rejected; the first: {self.rejected[0][1]}"
            )


def judge(
    item: Item, rules: CheckRules, sample_rate: int | None = None, keep_seconds: float = 0.0
) -> tuple[CheckedItem, SignalStatistics | None, np.ndarray | None]:
    """Judge an item, signal included, in bounded memory.

    Args:
      item: of the manifest.
      rules: how items are judged.
      sample_rate: at which the signal is judged; None: its own.
      keep_seconds: the signal of a recording that is no longer than this is kept.

    Returns:
      The item with what was found; its figures (None without a signal to judge); the signal [n, channels] float32 if
      it is usable and short enough, else None.

    Raises:
      UnknownSpeaker: which stops the job; every other finding is in the result.
    """
    checked = check_header(item, rules)
    if checked.rejected is not None:
        return checked, None, None
    rate = sample_rate or checked.info.sample_rate
    statistics = SignalStatistics(rate, len(checked.channels) if rules.streams == "two" else 1)
    kept = [] if checked.info.duration <= keep_seconds else None
    try:
        for block in signal_blocks(checked, rules, rate):
            statistics.add(block)
            if kept is not None:
                kept.append(block)
        apply_findings(checked, statistics)
    except DataError as error:
        checked.kind, checked.rejected = "unreadable", str(error)
    apply_strictness(checked, rules)
    if kept is None or checked.rejected is not None:
        return checked, statistics, None
    return checked, statistics, np.concatenate([np.zeros((0, statistics.channels), np.float32), *kept])


def judge_apart(
    isolated: Isolated, item: Item, rules: CheckRules, sample_rate: int | None = None, keep_seconds: float = 0.0
) -> tuple[CheckedItem, SignalStatistics | None, np.ndarray | None]:
    """Call `judge` in a separate process; a recording that crashes or hangs its decoder is rejected."""
    try:
        return audio.apart(isolated, judge, item.audio, item, rules, sample_rate, keep_seconds)
    except audio.DecoderLost as error:
        return CheckedItem(item, rejected=str(error), kind="decoder"), None, None


def validate(
    items: Iterable[Item],
    rules: CheckRules,
    progress: Callable[[], None] | None = None,
) -> Report:
    """Judge every item and return the counts; `progress()` is called after each."""
    report = Report()
    with Isolated() as isolated:
        for item in items:
            report.add(judge_apart(isolated, item, rules)[0])
            if progress is not None:
                progress()
    return report

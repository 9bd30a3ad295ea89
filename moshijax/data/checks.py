"""Checks that recordings are fit to train on. Every finding has a name, is counted, and names the file.

Findings either reject an item or flag it; `--strict` turns flags into rejections.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from moshijax import files
from moshijax.data import audio, buckets
from moshijax.data.band import Bandwidth
from moshijax.data.diarization import read_segments
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item
from moshijax.data.signal import SignalStatistics, heard
from moshijax.data.transcript import SPEAKERS, UnknownSpeaker, parse_alignments, read_sidecar
from moshijax.data.twins import twins
from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.recordings import Unfit

_LABELLED = 10_000  # transcripts that are read to list their labels
_CANCELLED = 1e-3  # of the power, which channels of opposite sign have when they are mixed

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
            raise DataError(f"recording {item.audio} holds no samples: remove it")
        checked.flags += Counter(header_length=int(info.extent.doubtful))
        if item.duration is not None and abs(item.duration - info.duration) > rules.frame_seconds:
            checked.flags["duration_mismatch"] += 1
        stage = "transcript"
        content = read_sidecar(item.sidecar)
        speakers = rules.speakers if rules.streams == "two" else None
        words, counts = parse_alignments(content["alignments"], info.duration, speakers, rules.min_score)
        if rules.streams == "diarized":
            stage = "diarization"
            checked.segments, found = read_segments(item, content)
            counts += found
    except UnknownSpeaker as error:
        raise UnknownSpeaker(error.labels, str(item.sidecar)) from error
    except DataError as error:
        message = str(error)
        named = str(item.audio.with_suffix("")) in message  # with any suffix
        checked.rejected = message if named else f"{item.sidecar}: {message}"
        checked.kind = _kind(error, stage)
        return checked
    except Exception as error:
        checked.kind, checked.rejected = unmade(item, error)
        return checked
    checked.words = words
    checked.flags.update(counts)
    if not words:
        checked.flags["no_words"] += 1
    if counts["low_score"] > 0.2 * max(1, len(words)):
        checked.kind = "low_score"
        checked.rejected = f"{item.sidecar}: {counts['low_score']} of {len(words)} words score below {rules.min_score}"
    return checked


@contextlib.contextmanager
def all_labels_named(items: Iterable[Item], rules: CheckRules) -> Iterator[None]:
    """When an unknown label stops a job, name those of all its transcripts (of many, the first 10,000) at once.

    Raises:
      UnknownSpeaker: in place of the one that was raised inside.
    """
    try:
        yield
    except UnknownSpeaker as error:
        labels: Counter[str] = Counter()
        for item in itertools.islice(items, _LABELLED):
            try:
                parse_alignments(read_sidecar(item.sidecar)["alignments"], math.inf, rules.speakers)
            except UnknownSpeaker as other:
                labels.update(other.labels)
            except DataError:  # of this item alone
                continue
        raise UnknownSpeaker(labels | Counter(error.labels), error.where) from None


def _kind(error: DataError, otherwise: str = "unreadable") -> str:
    """Return the kind of the rejection that an error is."""
    return error.kind if isinstance(error, Unfit) else otherwise


def unmade(item: Item, error: Exception, kind: str = "unreadable") -> tuple[str, str]:
    """Return kind and text of the rejection of an item that `error` kept from being made.

    Raises:
      Exception: `error`, where it is no fault of the item: a full disk, a missing package, no memory.
    """
    if isinstance(error, DataError):
        return _kind(error, kind), str(error)
    # A runtime error is how accelerators say that their memory is full.
    if isinstance(error, MoshijaxError | MemoryError | RuntimeError) or files.is_out_of_space(error):
        raise error
    return "unreadable", f"{item.audio} cannot be used ({type(error).__name__}: {error})"


def check_recording(item: Item) -> CheckedItem:
    """Judge an item of which only the sound is used: any number of channels, no transcript."""
    checked = CheckedItem(item)
    try:
        checked.info = audio.probe(item.audio)
        if checked.info.num_samples == 0:
            raise DataError(f"recording {item.audio} holds no samples: remove it")
        checked.flags += Counter(header_length=int(checked.info.extent.doubtful))
    except DataError as error:
        checked.rejected, checked.kind = str(error), _kind(error)
    return checked


def signal_blocks(checked: CheckedItem, rules: CheckRules, sample_rate: int) -> Iterator[np.ndarray]:
    """Read the recording as it is judged: two channels, or the mean of all as one; blocks [n, channels] float32.

    Raises:
      DataError: as `audio.blocks`; or nothing is left of the channels when they are mixed.
    """
    apart = mixed = 0.0
    extent = None if checked.info is None else checked.info.extent  # found once: it takes reading some files whole
    for block in audio.blocks(checked.item.audio, sample_rate, checked.channels, extent=extent):
        if rules.streams == "two":
            yield block
            continue
        mean = block.mean(axis=1, keepdims=True)
        apart += len(block) * float(block.var(axis=0).mean())
        mixed += len(block) * float(mean.var())
        yield mean
    if mixed < _CANCELLED * apart:
        raise Unfit(
            f"recording {checked.item.audio} is silent when its channels are mixed, which are one signal with opposite "
            "signs: invert one of them",
            "same_channels",
        )


def apply_findings(checked: CheckedItem, statistics: SignalStatistics) -> None:
    """Add what the whole signal says to an item: flags, a rejection, and the words without those that nobody spoke."""
    flags, kind, reason = statistics.findings(checked.words)
    checked.flags += flags
    if kind is not None:
        checked.kind, checked.rejected = kind, f"recording {checked.item.audio}: {reason}"
        return
    words = heard(statistics.levels(), checked.words)
    checked.flags += Counter(unheard_word=len(checked.words) - len(words))
    checked.words = words


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
    bandwidth = Bandwidth(rate, statistics.channels)
    kept = [] if checked.info.duration <= keep_seconds else None
    try:
        for block in signal_blocks(checked, rules, rate):
            statistics.add(block)
            bandwidth.add(block)
            if kept is not None:
                kept.append(block)
        checked.band = bandwidth.hertz()
        apply_findings(checked, statistics)
    except Exception as error:
        checked.kind, checked.rejected = unmade(item, error)
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
    items, report = tuple(items), Report()
    same = twins(items)
    with Isolated() as isolated, all_labels_named(items, rules), buckets.Fetched() as fetched:
        for item in items:
            here = fetched((item.audio, *item.transcripts))
            checked = judge_apart(isolated, item.at(here), rules)[0]
            checked.rejected = fetched.named(checked.rejected)
            if item.id in same:
                checked.flags["same_recording"] += 1
                if rules.strict and checked.rejected is None:
                    checked.kind = "same_recording"
                    checked.rejected = f"recording {item.audio} is {same[item.id]} under another name: remove it"
            report.add(checked)
            if progress is not None:
                progress()
    return report

"""Narrow recordings, such as telephone calls, with the highs that they lack, as far as their words survive it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax.data import audio
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item, Manifest
from moshijax.data.matching import match, plain
from moshijax.data.pieces import faded, overlapping
from moshijax.data.recording_stage import Progress
from moshijax.data.remake import Remaking, remake, write_wav
from moshijax.data.signal import SPEECH_RMS
from moshijax.data.transcribe import survey, words_by_channel
from moshijax.data.widener import Widener
from moshijax.data.word_sources import WordSource
from moshijax.errors import DataError, require
from moshijax.recordings import Unfit

if TYPE_CHECKING:
    from jaxtyping import Float

REPORT = "widen.report.json"
_OVERLAP_SECONDS = 0.5


def widen(
    manifest: Manifest,
    widener: Widener,
    source: WordSource,
    out: Path,
    max_changed: float = 0.1,
    max_rejected: float = 0.1,
    progress: Progress | None = None,
) -> Report:
    """Write every recording as a WAV file with highs, with its transcript; a manifest and a report beside them.

    A recording of which too many words sound different afterwards is rejected (`changed_words`). See `remake` for what
    is kept, and for errors.

    Args:
      manifest: of the recordings, of one or two channels.
      widener: that adds highs.
      source: that hears words, before and after.
      out: folder, which may be there.
      max_changed: share of the words that may be heard on one side alone.
      max_rejected: share of the recordings; a job with more of them rejected stops.
      progress: see `over_recordings`.

    Raises:
      ConfigError: `max_changed` is no share.
    """
    require(0 <= max_changed <= 1, f"max_changed is {max_changed}: it must be a share, from 0 to 1")

    def make(checked: CheckedItem, target: Path, isolated: Isolated) -> None:
        if checked.info.channels > 2:
            count = checked.info.channels
            raise Unfit(f"recording {checked.item.audio} has {count} channels: keep the one or two in use", "channels")
        channels, before = tuple(range(checked.info.channels)), _words(checked.item, source)
        decoded = target.with_suffix(".decoded.wav")
        try:
            audio.apart(isolated, _decode, checked.item.audio, checked, widener.rate, decoded)
            with write_wav(target, widener.rate, len(channels)) as file:
                for samples in widened(audio.blocks(decoded, widener.rate, channels), widener):
                    file.write(samples)
        finally:
            decoded.unlink(missing_ok=True)
        changed = _changed(before, _words(Item(checked.item.id, target, None), source))
        if changed > max_changed:
            raise Unfit(
                f"recording {checked.item.audio}: {changed:.0%} of the words sound different with highs, more than "
                f"{max_changed:.0%}: use it as it is",
                "changed_words",
            )

    settings = {"widener": widener.settings, "words": source.settings, "max_changed": max_changed}
    remaking = Remaking("widened", widener.version, settings, make, same_words=True)
    return remake(manifest, remaking, out, REPORT, max_rejected, progress)


def widened(blocks: Iterator[Float[np.ndarray, "n C"]], widener: Widener) -> Iterator[Float[np.ndarray, "n C"]]:
    """Widen a recording of any length, each channel by itself, in pieces of which neighbours share half a second.

    A piece gets the level of what it was made of. One without sound stays as it is.

    Args:
      blocks: of all channels at the widener's rate.
      widener: that adds highs.

    Raises:
      DataError: the widener cannot, or returns something unlike the recording.
    """
    size, overlap = round(widener.piece_seconds * widener.rate), round(_OVERLAP_SECONDS * widener.rate)
    made = (
        np.stack([_levelled(widener, np.ascontiguousarray(column)) for column in piece.T], axis=1)
        for piece in overlapping(blocks, size, overlap)
    )
    return faded(made, size, overlap)


def _levelled(widener: Widener, samples: np.ndarray) -> np.ndarray:
    """Widen a piece of one channel. What is added is uncorrelated with it, so the level is that of the common part."""
    power = float(np.square(samples).mean())
    if power < SPEECH_RMS**2:
        return samples
    wide = widener.widen(samples)[: len(samples)]
    common = float((wide * samples).mean()) if len(wide) == len(samples) else 0.0
    likeness = common / np.sqrt(power * max(float(np.square(wide).mean()), 1e-20))
    if not likeness > 0.5:
        raise DataError(f"{widener.version} returns something unlike the recording (correlation {likeness:.2f})")
    return (wide * (power / common)).astype(np.float32)


def _decode(checked: CheckedItem, rate: int, out: Path) -> None:
    channels = tuple(range(checked.info.channels))
    with write_wav(out, rate, len(channels)) as file:
        for block in audio.blocks(checked.item.audio, rate, channels, extent=checked.info.extent):
            file.write(block)


def _words(item: Item, source: WordSource) -> list[list[str]]:
    """Return the words that are heard on every channel, as they are compared."""
    checked, levels = survey(item, None)
    if checked.rejected is not None:
        raise Unfit(checked.rejected, checked.kind)
    return [[plain(word.text) for word in words] for words in words_by_channel(checked, levels, source)]


def _changed(before: list[list[str]], after: list[list[str]]) -> float:
    """Return the share of words that were heard on one side alone, of the side with more words."""
    same = sum(len(match(old, new)) for old, new in zip(before, after, strict=False))
    return 1 - same / max(1, *(sum(map(len, side)) for side in (before, after))) if any(before) or any(after) else 0.0

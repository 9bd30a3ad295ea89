"""Recordings of two people on one channel to recordings with a channel for each, in pieces that are joined."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax.data import audio
from moshijax.data.diarize import mix_down
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Manifest
from moshijax.data.pieces import faded, overlapping
from moshijax.data.recording_stage import Progress
from moshijax.data.remake import Remaking, remake, write_wav
from moshijax.data.separator import Separator
from moshijax.data.signal import SPEECH_RMS

if TYPE_CHECKING:
    from jaxtyping import Float

REPORT = "separate.report.json"
_PIECE_SECONDS, _OVERLAP_SECONDS = 12.0, 3.0
_CERTAIN = 1.5  # ratio of the products of two pieces where they overlap, one way round and the other


def separate(
    manifest: Manifest, separator: Separator, out: Path, max_rejected: float = 0.1, progress: Progress | None = None
) -> Report:
    """Write every recording as a WAV file with the two voices on two channels; a manifest and a report beside them.

    The first voice of a recording is on the left. See `remake` for what is kept, and for errors.

    Args:
      manifest: of the recordings, whose channels are mixed.
      separator: that takes voices apart.
      out: folder, which may be there.
      max_rejected: share of the recordings; a job with more of them rejected stops.
      progress: see `over_recordings`.
    """

    def make(checked: CheckedItem, target: Path, isolated: Isolated) -> None:
        mono = target.with_suffix(".mixed.wav")
        try:
            audio.apart(isolated, mix_down, checked.item.audio, checked, mono)
            blocks = (block[:, 0] for block in audio.blocks(mono, separator.rate, (0,)))
            with write_wav(target, separator.rate, 2) as file:
                for voices in joined(blocks, separator, checked.flags):
                    file.write(voices)
        finally:
            mono.unlink(missing_ok=True)

    remaking = Remaking("separated", separator.version, separator.settings, make, same_words=False)
    return remake(manifest, remaking, out, REPORT, max_rejected, progress)


def joined(
    blocks: Iterable[Float[np.ndarray, " n"]], separator: Separator, found: Counter[str]
) -> Iterator[Float[np.ndarray, "n 2"]]:
    """Separate a recording of any length in pieces of 12 s, of which neighbours share 3 s.

    Where two pieces overlap, the voices of the second are put in the order in which they resemble those of the first,
    and faded over. `uncertain_join` counts overlaps in which neither order is much likelier, such as pauses. Each piece
    is scaled so that the sum of its voices is nearest to the recording.

    Args:
      blocks: of one channel at the separator's rate.
      separator: that takes voices apart.
      found: takes the counts.

    Yields:
      The two voices, as long together as the recording.
    """
    size, overlap = round(_PIECE_SECONDS * separator.rate), round(_OVERLAP_SECONDS * separator.rate)
    pieces = overlapping((block.astype(np.float32, copy=False) for block in blocks), size, overlap)
    voices = (_scaled(separator.separate(samples), samples) for samples in pieces)
    return faded(_in_order(voices, size, overlap, found), size, overlap)


def _in_order(
    pieces: Iterable[Float[np.ndarray, "n 2"]], size: int, overlap: int, found: Counter[str]
) -> Iterator[Float[np.ndarray, "n 2"]]:
    """Put the voices of every piece in the order of those of the piece before."""
    tail: np.ndarray | None = None
    for voices in pieces:
        if tail is not None and len(tail):
            ahead = voices[: len(tail)]
            before = tail[: len(ahead)]
            same, crossed = (float(np.abs((before * each).sum(0)).sum()) for each in (ahead, ahead[:, ::-1]))
            if crossed > same:
                voices = voices[:, ::-1]
            quiet = np.sqrt(np.square(before).mean()) < SPEECH_RMS
            found["uncertain_join"] += bool(quiet or max(same, crossed) < _CERTAIN * min(same, crossed))
        yield voices
        tail = voices[size - overlap :] if len(voices) == size else None


def _scaled(voices: np.ndarray, samples: np.ndarray) -> np.ndarray:
    """Scale both voices so that their sum is nearest to the recording, by least squares."""
    weights = np.linalg.lstsq(voices, samples, rcond=None)[0]
    return (voices * weights).astype(np.float32)

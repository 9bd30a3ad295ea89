"""What was found of a recording, and the counts over a set."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from moshijax.data import audio, band
from moshijax.data.diarization import Segment
from moshijax.data.manifest import Item
from moshijax.data.transcript import Word
from moshijax.errors import DataError

_COUNTED = ("bands", "flags", "kinds")


@dataclass
class CheckedItem:
    """An item with what was found.

    Attributes:
      item: of the manifest.
      info: header of the recording; None if it could not be read.
      channels: numbers of the channels that are used.
      band: highest frequency that carries energy in what was judged, in Hz (`moshijax.data.band`), 0 without sound;
        None where the signal was not judged.
      words: of the transcript, repaired.
      segments: who speaks when, of diarized recordings.
      flags: repairs and doubts, counted.
      rejected: the reason; None if the item is usable.
      kind: of the rejection.
    """

    item: Item
    info: audio.AudioInfo | None = None
    channels: tuple[int, ...] = (0, 1)
    band: int | None = None
    words: list[Word] = field(default_factory=list)
    segments: list[Segment] = field(default_factory=list)
    flags: Counter[str] = field(default_factory=Counter)
    rejected: str | None = None
    kind: str | None = None


@dataclass
class Report:
    """Counts over a set of items.

    Attributes:
      items: all of them.
      usable: those not rejected.
      seconds: of the usable ones.
      words: of the usable ones.
      rejected_seconds: of the rejected recordings, as far as their headers could be read.
      bands: seconds of the usable ones by how high their sound reaches.
      flags: items per flag.
      kinds: items per kind of rejection.
      rejected: id and reason of every rejected item; of documents only the first of each piece of text.
      flagged: the first item with each flag.
    """

    items: int = 0
    usable: int = 0
    seconds: float = 0.0
    words: int = 0
    rejected_seconds: float = 0.0
    bands: Counter[str] = field(default_factory=Counter)
    flags: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    rejected: list[tuple[str, str]] = field(default_factory=list)
    flagged: dict[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, checked: CheckedItem) -> Report:
        """Return the report of one item."""
        report = cls()
        report.add(checked)
        return report

    def add(self, checked: CheckedItem) -> None:
        """Count an item."""
        if checked.rejected is not None:
            self.reject(checked.item.id, checked.kind or "rejected", checked.rejected)
            self.rejected_seconds += checked.info.duration if checked.info is not None else 0.0
        else:
            self.items += 1
            self.usable += 1
            self.seconds += checked.info.duration
            self.words += len(checked.words)
            if checked.band is not None:
                self.bands[band.name_of(checked.band)] += checked.info.duration
        for name in checked.flags:
            self.flags[name] += 1
            self.flagged.setdefault(name, checked.item.id)

    def reject(self, name: str, kind: str, reason: str, most: int | None = None) -> None:
        """Count a rejected item, and list it unless `most` are listed."""
        self.items += 1
        self.kinds[kind] += 1
        if most is None or len(self.rejected) < most:
            self.rejected.append((name, reason))

    def merge(self, other: Report) -> None:
        """Add the counts of other items, which come after these."""
        for name in ("items", "usable", "seconds", "words", "rejected_seconds"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.bands.update(other.bands)
        self.flags.update(other.flags)
        self.kinds.update(other.kinds)
        self.rejected += other.rejected
        self.flagged = {**other.flagged, **self.flagged}

    def to_json(self) -> dict:
        """Return a form that JSON can hold."""
        return {**vars(self), **{name: dict(getattr(self, name)) for name in _COUNTED}}

    @classmethod
    def from_json(cls, data: dict) -> Report:
        """Return the inverse of `to_json`."""
        rejected = [(name, reason) for name, reason in data["rejected"]]
        return cls(**{**data, **{name: Counter(data[name]) for name in _COUNTED}, "rejected": rejected})

    def require_usable(self, where: str | Path, strict: bool = False) -> None:
        """Check that a set can be used.

        Raises:
          DataError: nothing is usable, or `strict` is set and an item was rejected.
        """
        if self.items and not self.usable:
            raise DataError(f"none of the {self.items} items of {where} is usable; the first: {self.rejected[0][1]}")
        if strict and self.rejected:
            raise DataError(
                f"{self.items - self.usable} of {self.items} items of {where} are rejected; "
                f"the first: {self.rejected[0][1]}"
            )

"""Recordings that hold the same bytes, within one set and between two."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path

from moshijax.data import buckets, sources
from moshijax.data.manifest import Item
from moshijax.errors import DataError


def twins(items: Iterable[Item]) -> dict[str, str]:
    """Return the ids of recordings that hold the same bytes as an earlier one, and the ids of these."""
    sizes: dict[int, list[Item]] = {}
    for item in items:
        with contextlib.suppress(OSError, ValueError):  # that it cannot be read is told elsewhere
            sizes.setdefault(buckets.stamp(item.audio)[0], []).append(item)
    found: dict[str, str] = {}
    for alike in sizes.values():
        first: dict[str, str] = {}
        for item in alike if len(alike) > 1 else ():
            earlier = first.setdefault(_sha256(item.audio) or item.id, item.id)
            if earlier != item.id:
                found[item.id] = earlier
    return found


def refuse_twins(items: Iterable[Item]) -> None:
    """Check that no recording is there under two names.

    Raises:
      DataError: one is.
    """
    if same := twins(items):
        first, other = next(iter(same.items()))
        raise DataError(
            f"{len(same)} recordings are there under another name too, such as {first} = {other}: remove them"
        )


def _sha256(path: Path) -> str | None:
    """Return the hash of a file, or None if it cannot be read."""
    seen = sources.look(path)
    return None if seen is None else str(seen[-1])


def overlap(items: Iterable[Item], others: Iterable[Item]) -> list[tuple[str, str]]:
    """Return the pairs of ids of recordings that hold the same bytes."""
    known = {_sha256(item.audio): item.id for item in others}
    known.pop(None, None)
    pairs = [(item.id, known.get(_sha256(item.audio))) for item in items]
    return [(name, other) for name, other in pairs if other is not None]

"""Families of prompts, each a text file with places that are filled from lists.

The families of the instruct data of Moshi (arXiv 2410.00037, 4.4) ship in `data/prompts`, in our own words. A file
holds

    turns: 4 12                 utterances of a dialogue, at least and at most
    needs: interruption         a kind of utterance that must occur; may be left out

    The prompt, with places such as {topic}: an entry of `lists/topic.txt` beside the file, one per line.

The file `format.txt` is no family: it is the instruction to all of them, which says how a script is written.
"""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from moshijax import files
from moshijax.data.synthesis.dialogue import KINDS
from moshijax.errors import ConfigError, DataError

_PLACE = re.compile(r"\{(\w+)\}")
_FORMAT = "format.txt"


@dataclass(frozen=True)
class Family:
    """Prompts of one kind.

    Attributes:
      name: of the file.
      system: the instruction to all families.
      prompt: with places in braces.
      turns: utterances of a dialogue, at least and at most.
      needs: kind of utterance that must occur; "": none.
      entries: for each place, what may stand there.
    """

    name: str
    system: str
    prompt: str
    turns: tuple[int, int]
    needs: str
    entries: Mapping[str, Sequence[str]]

    def fill(self, rng: random.Random) -> str:
        """Return the prompt with an entry at every place; a place that occurs twice holds the same."""
        drawn = {place: rng.choice(self.entries[place]) for place in sorted(self.entries)}
        return _PLACE.sub(lambda match: drawn[match[1]], self.prompt)


def load_families(folder: Path, names: Sequence[str] = (), given: Mapping[str, Path] | None = None) -> list[Family]:
    """Read families of prompts.

    Args:
      folder: of their files, with `format.txt` and the folder `lists`.
      names: of the families; none: all of which every place has a list.
      given: files for places, in place of `lists/PLACE.txt` or where there is none.

    Raises:
      ConfigError: there is no such family, a list is missing, or a place of none of the families is given.
      DataError: a file cannot be read, or has another form.
    """
    given = given or {}
    system = files.read_text(folder / _FORMAT, "instruction").strip()
    known = sorted(path.stem for path in folder.glob("*.txt") if path.name != _FORMAT)
    for name in names:
        if name not in known:
            raise ConfigError(f"family {name!r} is not in {folder}: choose of {', '.join(known)}")
    lists = {path.stem: path for path in (folder / "lists").glob("*.txt")} | given
    found = []
    for name in names or known:
        family = _read(folder / f"{name}.txt", system)
        missing = [place for place in family.entries if place not in lists]
        if missing and names:
            raise ConfigError(
                f"family {name} needs a list of {missing[0]}: add --given {missing[0]}=FILE, one per line"
            )
        if not missing:
            entries = {place: _entries(lists[place]) for place in family.entries}
            found.append(Family(name, system, family.prompt, family.turns, family.needs, entries))
    unused = set(given) - {place for family in found for place in family.entries}
    if unused:
        raise ConfigError(f"--given {min(unused)}: no family here has the place {{{min(unused)}}}; leave it out")
    return found


def _read(path: Path, system: str) -> Family:
    head, _, prompt = files.read_text(path, "prompt").replace("\r\n", "\n").partition("\n\n")
    fields = dict(line.partition(": ")[::2] for line in head.split("\n"))
    try:
        least, most = map(int, fields.pop("turns").split())
        needs = fields.pop("needs", "")
        if fields or not prompt.strip() or needs not in ("", *KINDS) or not 1 <= least <= most:
            raise ValueError
    except (KeyError, ValueError):
        raise DataError(
            f"{path} is no family of prompts: begin it with 'turns: LEAST MOST', then perhaps 'needs: KIND' (of "
            f"{', '.join(KINDS)}), an empty line, and the prompt"
        ) from None
    return Family(path.stem, system, prompt.strip(), (least, most), needs, dict.fromkeys(_PLACE.findall(prompt), ()))


def _entries(path: Path) -> list[str]:
    lines = [line.strip() for line in files.lines(files.read_text(path, "list"))]
    found = [line for line in lines if line and not line.startswith("#")]
    if not found:
        raise DataError(f"list {path} is empty: write one entry per line")
    return found

"""The families of models: one table, by the kind that `model.json` of runs and imported models names.

A new family is a class in a module of its own, and one entry here. Whatever differs between families is asked of the
entry; nothing else compares kinds.
"""

from __future__ import annotations

from pathlib import Path

from moshijax.errors import DataError
from moshijax.weights.families.codec import CODEC
from moshijax.weights.families.family import Family
from moshijax.weights.families.lm import LANGUAGE_MODEL
from moshijax.weights.families.omni import OMNI

#: kind -> family. Published files are offered to them in this order; language models claim every config that is not
#: a codec's, so that other families stand before them.
FAMILIES: dict[str, Family] = {family.kind: family for family in (OMNI, LANGUAGE_MODEL, CODEC)}


def family_of(kind: str, where: Path) -> Family:
    """Return the family of a kind that the file `where` names.

    Raises:
      DataError: this version has no such family.
    """
    if kind not in FAMILIES:
        raise DataError(f"{where} names the kind {kind!r}; this version knows {', '.join(FAMILIES)}")
    return FAMILIES[kind]

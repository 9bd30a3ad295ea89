"""Wikitext to plain text."""

from __future__ import annotations

import re
from collections.abc import Set
from typing import Any

from moshijax import optional

#: Namespaces of pictures and categories, whose links are no part of the text; a dump names them in its language too.
APART = frozenset(("file", "image", "category"))
# Elements whose content is no part of the running text.
_TAGS = ("ref", "references", "table", "gallery", "math", "timeline", "imagemap", "score", "syntaxhighlight", "source")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[a-z-]+)?")
_BLANK = re.compile(r"[ \t]*\n\s*")


def plain(source: str, apart: Set[str] = APART) -> str:
    """Return the text of a page: no references, tables, pictures, categories or templates; headings stay.

    Args:
      source: wikitext.
      apart: names in lower case of the namespaces whose links are left out.
    """

    def is_apart(node: Any) -> bool:
        kind = type(node).__name__
        if kind == "Tag":
            return str(node.tag).strip().lower() in _TAGS
        if kind != "Wikilink":
            return False
        prefix, colon, _ = str(node.title).strip().partition(":")
        return bool(colon) and (
            prefix.strip().lower() in apart or (node.text is None and _LANGUAGE.fullmatch(prefix) is not None)
        )

    code = optional.load("mwparserfromhell").parse(source)
    for node in code.filter(recursive=True, matches=is_apart):
        try:
            code.remove(node)
        except ValueError:  # it was part of one that is gone
            continue
    return _BLANK.sub("\n", code.strip_code(normalize=True, collapse=True)).strip()

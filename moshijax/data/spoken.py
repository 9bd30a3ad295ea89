"""Written text to its spoken form.

The rules are those by which LLaMA-Omni's speech instructions were made of Alpaca's (arXiv 2409.06666, 3.1): numbers and
symbols spelled out, nothing that cannot be said. There a language model rewrites; here rules do, so that the same text
always gives the same words. English. How numbers are said is in `moshijax.data.numerals`.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from moshijax.data import numerals

_SYMBOLS = {
    "&": "and", "%": "percent", "+": "plus", "=": "equals", "@": "at", "#": "number", "/": "slash", "<": "less than",
    ">": "greater than", "~": "about", "°": "degrees", "×": "times", "÷": "divided by", "±": "plus or minus",
    "≈": "about", "≤": "at most", "≥": "at least", "≠": "is not", "^": "to the power of", "$": "dollars", "€": "euros",
    "£": "pounds", "¥": "yen", "₹": "rupees", "¢": "cents", "√": "the square root of", "π": "pi", "→": "to",
}  # fmt: skip
_ABBREVIATIONS = {
    "e.g.": "for example", "i.e.": "that is", "etc.": "et cetera", "vs.": "versus", "mr.": "mister", "mrs.": "missus",
    "ms.": "miz", "dr.": "doctor", "prof.": "professor", "jr.": "junior", "sr.": "senior", "approx.": "approximately",
    "dept.": "department", "inc.": "incorporated", "a.m.": "A M", "p.m.": "P M", "w/o": "without",
}  # fmt: skip
_BEFORE_NUMBERS = {"no.": "number", "fig.": "figure", "p.": "page", "pp.": "pages", "vol.": "volume", "ch.": "chapter"}
_SAID_AS_WORDS = frozenset("NASA NATO AIDS UNESCO UNICEF OPEC FIFA COVID RAM PIN SIM GIF JPEG LASER RADAR OK".split())
#: Written in capitals for emphasis; "US" and "IT" are names.
_STRESSED = frozenset("AND OR NOT NO ALL ANY MUST NEVER ONLY THE IS ARE DO BE IF THIS THAT YOU YOUR".split())
#: What a reader sees and a listener misses: an entry with it is of no use as speech.
UNSPEAKABLE = ("code", "url", "table", "formula")


@dataclass(frozen=True)
class Spoken:
    """A text as it is said.

    Attributes:
      text: letters, spaces, and ".,?!'".
      removed: what was left out, by kind: those of `UNSPEAKABLE` (of a table, its rows), "markup", "list" (the marks of
        its items), "punctuation" (that is not heard), "character" (which has no spoken form).
    """

    text: str
    removed: Counter[str] = field(default_factory=Counter)


def spoken(text: str) -> Spoken:
    """Return the spoken form of a text of any kind. Needs the extra `spoken`."""
    removed: Counter[str] = Counter()
    text = html.unescape(text).translate({ord("²"): "^2", ord("³"): "^3"})
    text = re.sub("[¼-¾⅐-⅞]", lambda m: " " + unicodedata.normalize("NFKC", m[0]), text)
    text = unicodedata.normalize("NFKC", text).translate(str.maketrans("’‘ʼ⁄−–", "'''/--"))

    def remove(kind: str, pattern: str, instead: str = " ", flags: int = 0) -> None:
        nonlocal text
        text, count = re.subn(pattern, instead, text, flags=flags)
        removed.update({kind: count} if count else {})

    remove("code", r"```.*?(```|\Z)", flags=re.S)
    remove("code", r"`[^`\n]+`")
    remove("formula", r"\$\$.+?\$\$|\\\[.+?\\\]|\\\(.+?\\\)|\$[^$\n]*\\[A-Za-z][^$\n]*\$", flags=re.S)
    remove("formula", r"\\[A-Za-z]+(?:\{[^{}\n]*\})+")
    remove("markup", r"!?\[([^\]\n]+)\]\([^)\s]*\)", r"\1")
    remove("markup", r"\[\^?\d{1,3}\]")
    remove("url", r"(?:https?://|www\.)\S+|\b\S+@\S+\.\w+|\b[\w.-]+\.(?:com|org|net|io|edu|gov)\b(?:/\S*)?")
    remove("markup", r"</?[A-Za-z][^<>\n]*>")
    remove("table", r"^[ \t]*\|.*\|[ \t]*$", "", re.M)
    remove("markup", r"^[ \t]*(?:-{3,}|\*{3,}|_{3,}|={3,})[ \t]*$", "", re.M)
    remove("list", r"^[ \t]*(?:[-*•+]|\d{1,3}[.)]|[A-Za-z]\))[ \t]+(?=\S)", "", re.M)
    remove("markup", r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]*)", "", re.M)
    remove("markup", r"\*\*|__|~~|(?<!\w)[*_](?=\w)|(?<=\w)[*_](?!\w)", "")
    text = re.sub(r"([^\s.,?!:;])[ \t]*(?:[\r\n\v\f\x1c-\x1e\x85\u2028\u2029]\s*)+", r"\1. ", text.strip())
    for pattern, said in _rules(text):
        text = re.sub(pattern, said, text)
    return Spoken(_finish(text, removed), removed)


def _rules(text: str) -> Iterator[numerals.Rule]:
    """Patterns and what is said for them, in order."""
    words = re.findall(r"[A-Za-z]{2,}", text)
    if len(words) > 3 and sum(word.isupper() for word in words) > len(words) / 2:  # the writer shouts
        yield r"\b[A-Z]{2,}\b", lambda m: m[0].lower()
    yield rf"(?i)(?<![\w.])(?:{_any(_ABBREVIATIONS)})", lambda m: _ABBREVIATIONS[m[0].lower()]
    yield rf"(?i)(?<![\w.])({_any(_BEFORE_NUMBERS)}) ?(?=\d)", lambda m: f"{_BEFORE_NUMBERS[m[1].lower()]} "
    yield r"\bSt\. (?=[A-Z])", "Saint "
    yield r"\bvs\b", "versus"
    yield r"\bw/ ?(?=\w)", "with "
    # (the last mark of "U.S." ends the text too)
    yield r"\b(?:[A-Z]\.){2,}(\Z)?", lambda m: " ".join(m[0].replace(".", "")) + ("." if m[1] is not None else "")
    yield r"\band/or\b", "and or"
    yield r"\b(?<!\d )([a-z]{2,})/(?=[a-z]{2,}\b)", r"\1 or "
    yield r"\b([A-Z])#(?!\w)", r"\1 sharp"
    yield r"#(?=[A-Za-z])", "hashtag "
    yield from numerals.rules()
    yield r" -- ", ", "
    yield r"\b[A-Z]{2,5}s?\b", _acronym
    yield _any(_SYMBOLS), lambda m: f" {_SYMBOLS[m[0]]} "


def _any(names: dict[str, str]) -> str:
    return "|".join(re.escape(name) for name in sorted(names, key=len, reverse=True))


def _acronym(match: re.Match[str]) -> str:
    if match[0] in _STRESSED:
        return match[0].lower()
    letters = match[0].removesuffix("s")
    if letters in _SAID_AS_WORDS:
        return match[0]
    return " ".join(letters) + ("s" if match[0].endswith("s") else "")


def _finish(text: str, removed: Counter[str]) -> str:
    """Keep letters and sentence punctuation; count the rest."""
    kept = []
    for position, char in enumerate(text):
        inside = 0 < position < len(text) - 1 and text[position - 1].isalpha() and text[position + 1].isalpha()
        if char.isalpha() or char in ".,?!" or (char == "'" and inside):
            kept.append(char)
        elif char.isspace() or (char == "-" and inside):
            kept.append(" ")
        elif char in ":;()-\u2014\u2026":
            kept.append("," if kept and kept[-1] != " " or char in ":;\u2014\u2026" else " ")
            removed["punctuation"] += 1
        else:
            removed["punctuation" if unicodedata.category(char)[0] == "P" else "character"] += 1
            kept.append(" ")
    text = re.sub(r"\s+", " ", "".join(kept))
    # Of several marks in a row, the last one that ends a sentence is heard.
    text = re.sub(r"[ .,?!]*[.,?!][ .,?!]*", lambda m: (re.findall(r"[.?!]", m[0]) or [","])[-1] + " ", text)
    return text.strip(" ,").lstrip(".?!, ")

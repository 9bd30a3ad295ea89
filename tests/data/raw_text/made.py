"""Small files in the formats of real sources, and English that the filters keep."""

from __future__ import annotations

import json
import random
import zlib
from pathlib import Path
from xml.sax.saxutils import escape, quoteattr

_WORDS = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which "
    "one you were all her she there would their we him been has when who will no more if out so up said what its about "
    "than into them can only other time new some could these two may first then do any like my now over such our man "
    "me even most made after also did many fore must through years where much your way well down should because each"
).split()


def sentence(rng: random.Random) -> str:
    return " ".join(rng.choice(_WORDS) for _ in range(18)).capitalize() + "."


def english(seed: int, lines: int = 8) -> str:
    """A document of that many different lines."""
    rng = random.Random(seed)
    return "\n".join(sentence(rng) for _ in range(lines))


def jsonl(path: Path, texts: list, field: str = "text") -> Path:
    path.write_text("".join(json.dumps({field: text}) + "\n" for text in texts), encoding="utf-8")
    return path


def warc_record(kind: str, uri: str, media: str, body: bytes) -> bytes:
    head = (
        f"WARC/1.0\r\nWARC-Type: {kind}\r\nWARC-Target-URI: {uri}\r\nWARC-Date: 2023-10-01T00:00:00Z\r\n"
        f"WARC-Record-ID: <urn:uuid:{zlib.crc32(uri.encode())}>\r\nContent-Type: {media}\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body + b"\r\n\r\n"


def wet(pages: dict[str, bytes]) -> bytes:
    """A WET file: its information, then the text of every page."""
    info = warc_record("warcinfo", "file.warc.wet.gz", "application/warc-fields", b"Software-Info: made\r\n")
    return info + b"".join(warc_record("conversion", uri, "text/plain", body) for uri, body in pages.items())


def warc(pages: dict[str, tuple[str, bytes]]) -> bytes:
    """A WARC file: the request and the answer of every page, of a content type and a body."""
    parts = []
    for uri, (media, body) in pages.items():
        parts.append(warc_record("request", uri, "application/http; msgtype=request", b"GET / HTTP/1.1\r\n\r\n"))
        http = f"HTTP/1.1 200 OK\r\nContent-Type: {media}\r\n\r\n".encode() + body
        parts.append(warc_record("response", uri, "application/http; msgtype=response", http))
    return b"".join(parts)


def mediawiki(pages: list[tuple[str, str, str]], redirects: tuple[str, ...] = ()) -> str:
    """A dump of (title, namespace, wikitext)."""
    found = "".join(
        f"<page><title>{escape(title)}</title><ns>{space}</ns><id>{number}</id><revision><id>1</id>"
        f'<text bytes="1" xml:space="preserve">{escape(text)}</text></revision></page>\n'
        for number, (title, space, text) in enumerate(pages)
    )
    found += "".join(
        f'<page><title>{escape(title)}</title><ns>0</ns><redirect title="x"/><revision><text>#REDIRECT [[x]]</text>'
        "</revision></page>\n"
        for title in redirects
    )
    return (
        '<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="fr"><siteinfo>'
        '<namespaces><namespace key="0" case="first-letter"/><namespace key="6">Fichier</namespace>'
        f'<namespace key="14">Catégorie</namespace></namespaces></siteinfo>\n{found}</mediawiki>\n'
    )


def stackexchange(rows: list[dict[str, str]]) -> str:
    """A Posts.xml."""
    lines = "".join(f"  <row {' '.join(f'{k}={quoteattr(v)}' for k, v in row.items())} />\n" for row in rows)
    return f'<?xml version="1.0" encoding="utf-8"?>\n<posts>\n{lines}</posts>\n'

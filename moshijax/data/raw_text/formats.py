"""The documents of web archives, dumps of wikis and of StackExchange, JSON lines and plain text, in bounded memory.

What is no document, or cannot be read, is told of instead of left out.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from xml.etree import ElementTree

from moshijax import files, optional
from moshijax.data.raw_text import wiki
from moshijax.errors import ConfigError

LONGEST = 8_000_000  # bytes of a document, as in `moshijax.data.documents`
_REMEDY = {".7z": "unpack it with `7z x`", ".zip": "unpack it", ".parquet": "write it as JSON lines"}
_HTML = ("text/html", "application/xhtml+xml")
_POSTS = ("1", "2")  # questions and answers
_APART_NAMESPACES = ("6", "14")  # files and categories


@dataclass(frozen=True)
class Document:
    """A document.

    Attributes:
      name: of the document inside its file, for messages.
      text: lines, without markup.
    """

    name: str
    text: str


@dataclass(frozen=True)
class Refused:
    """What is no document.

    Attributes:
      name: of it inside its file.
      kind: of refusal.
      reason: and remedy, where there is one.
    """

    name: str
    kind: str
    reason: str


Found = Iterator[Document | Refused]


def reader(path: Path, field: str = "text") -> Callable[[], Found]:
    """Return the function that reads the documents of a file, known by its name.

    Args:
      path: `.warc`, `.wet` (both with any or no compression), `.xml`, `.jsonl` or `.txt`, the last three also with
        `.gz`, `.bz2`, `.xz` or `.zst`.
      field: of a line of JSON, which holds the text; dots lead inside, as in `document.body`.

    Raises:
      ConfigError: the name says nothing of the format.
    """
    name = path.name.lower()
    stem, packed = (name[: -len(end)], end) if (end := Path(name).suffix) in _UNPACK else (name, "")
    if stem.endswith((".warc", ".wet")):
        return lambda: _archive(path)
    if re.search(r"\.xml(-p\d+p\d+)?$", stem):
        return lambda: _guarded(path, packed, _dump)
    if stem.endswith((".jsonl", ".ndjson", ".json")):
        return lambda: _guarded(path, packed, lambda file: _json_lines(file, field))
    if stem.endswith(".txt"):
        return lambda: _guarded(path, packed, _plain)
    remedy = _REMEDY.get(Path(name).suffix, "use .warc, .wet, .xml, .jsonl or .txt, also with .gz, .bz2, .xz or .zst")
    raise ConfigError(f"{path} is of no format that is read: {remedy}")


class _Zstd(io.RawIOBase):
    """fastwarc's reader of Zstandard as a raw file."""

    def __init__(self, file: BinaryIO):
        self._reader = optional.load("fastwarc").ZstdReader(file)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._reader.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


_UNPACK: dict[str, Callable[[BinaryIO], BinaryIO]] = {
    ".gz": lambda file: gzip.GzipFile(fileobj=file),
    ".bz2": bz2.BZ2File,
    ".xz": lzma.LZMAFile,
    ".zst": lambda file: io.BufferedReader(_Zstd(file)),
}


def _guarded(path: Path, packed: str, read: Callable[[BinaryIO], Found]) -> Found:
    """What a reader finds in a file, and at last why the rest of it cannot be read."""
    count = 0
    try:
        with open(path, "rb") as raw:
            for found in read(_UNPACK[packed](raw) if packed else raw):
                count += 1
                yield found
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ElementTree.ParseError, ValueError) as error:
        yield _broken(path, count, error)


def _broken(path: Path, count: int, error: Exception) -> Refused:
    reason = files.reason(path, error) if isinstance(error, OSError) else str(error)
    return Refused("the rest", "unreadable", f"after {count} documents it cannot be read ({reason}): copy it again")


def _archive(path: Path) -> Found:
    """WET: the text of a page; WARC: pages of HTML, of which the main content is taken."""
    fastwarc = optional.load("fastwarc.warc")
    kinds = fastwarc.WarcRecordType
    count = 0
    try:
        with open(path, "rb") as file:
            wanted = kinds.response | kinds.conversion | kinds.resource
            for record in fastwarc.ArchiveIterator(file, record_types=wanted, parse_http=True):
                count += 1
                yield _page(record)
    except (OSError, EOFError, ValueError) as error:
        yield _broken(path, count, error)


def _page(record: Any) -> Document | Refused:
    name = record.headers.get("WARC-Target-URI") or str(record.record_id)
    body, expected = record.reader.read(LONGEST + 1), record.content_length
    media = (record.http_content_type if record.is_http else record.headers.get("Content-Type")) or ""
    media = media.partition(";")[0].strip().lower()
    if len(body) > LONGEST:
        return Refused(name, "too_long", f"it is longer than {LONGEST} bytes")
    if len(body) < expected:
        return Refused(name, "unreadable", f"the archive breaks off in it ({len(body)} of {expected} bytes)")
    if media == "text/plain":
        try:
            return Document(name, body.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            return Refused(name, "encoding", f"it is not UTF-8 (byte {error.start})")
    if media not in _HTML:
        return Refused(name, "media_type", f"it is {media or 'of no type'}, neither HTML nor plain text")
    parse = optional.load("resiliparse.parse.encoding")
    charset = record.http_charset or parse.detect_encoding(body)
    return Document(name, html_text(parse.bytes_to_str(body, charset), main_content=True))


def html_text(html: str, main_content: bool = False) -> str:
    """Return the text of HTML; with `main_content` without menus and the like."""
    extract = optional.load("resiliparse.extract.html2text").extract_plain_text
    return extract(html, preserve_formatting=True, main_content=main_content, list_bullets=False, alt_texts=False)


def _lines(file: BinaryIO) -> Iterator[tuple[str, str | Refused]]:
    """The name of every line that is not empty, and its text."""
    number, mark = 0, b"\xef\xbb\xbf"
    while line := file.readline(LONGEST + 1):
        number += 1
        name, whole = f"line {number}", line.removeprefix(mark) if number == 1 else line
        while not line.endswith(b"\n") and (line := file.readline(LONGEST + 1)):
            whole = whole[: LONGEST + 1] + line[:1]  # (longer than the longest, whatever it is)
        if len(whole) > LONGEST:
            yield name, Refused(name, "too_long", f"it is longer than {LONGEST} bytes")
        elif whole.strip():
            try:
                yield name, whole.decode("utf-8")
            except UnicodeDecodeError as error:
                yield name, Refused(name, "encoding", f"it is not UTF-8 (byte {error.start}): convert it to UTF-8")


def _plain(file: BinaryIO) -> Found:
    """A document a line, as `moshijax data prepare` reads them."""
    for name, line in _lines(file):
        yield line if isinstance(line, Refused) else Document(name, line)


def _json_lines(file: BinaryIO, field: str) -> Found:
    for name, line in _lines(file):
        if isinstance(line, Refused):
            yield line
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            yield Refused(name, "json", f"it is not JSON ({error})")
            continue
        for key in field.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if isinstance(value, str):
            yield Document(name, value)
        else:
            yield Refused(name, "no_text", f"it has no text in {field!r}: name another with --field")


def _dump(file: BinaryIO) -> Found:
    """A dump of MediaWiki (Wikipedia and its family), or the Posts.xml of a StackExchange site."""
    events = ElementTree.iterparse(file, ("start", "end"))
    _, root = next(events)
    kind, apart = _local(root.tag), wiki.APART
    if kind not in ("mediawiki", "posts"):
        raise ValueError(f"its root is <{kind}>, neither <mediawiki> nor <posts>")
    for event, element in events:
        if event != "end":
            continue
        match _local(element.tag):
            case "siteinfo":
                apart |= {
                    (space.text or "").lower() for space in element.iter() if space.get("key") in _APART_NAMESPACES
                }
            case "page":
                yield _wiki_page(element, apart)
                root.clear()
            case "row" if kind == "posts":
                yield _post(element)
                root.clear()


def _local(tag: str) -> str:
    return tag.rpartition("}")[2]


def _wiki_page(page: ElementTree.Element, apart: Set[str]) -> Document | Refused:
    about = {_local(element.tag): element for element in page.iter()}
    name = (about["title"].text or "") if "title" in about else ""
    if "redirect" in about:
        return Refused(name, "redirect", "it only leads to another page")
    if "ns" in about and about["ns"].text != "0":
        return Refused(name, "namespace", f"it is in namespace {about['ns'].text}, not an article")
    source = about["text"].text if "text" in about else None
    if not source:
        return Refused(name, "empty", "the page has no text")
    if len(source) > LONGEST:
        return Refused(name, "too_long", f"it is longer than {LONGEST} characters")
    return Document(name, f"{name}\n{wiki.plain(source, apart)}")


def _post(row: ElementTree.Element) -> Document | Refused:
    """A question with its title, or an answer."""
    name = f"post {row.get('Id')}"
    if row.get("PostTypeId") not in _POSTS:
        return Refused(name, "other_post", f"it is of type {row.get('PostTypeId')}, neither question nor answer")
    title, body = row.get("Title") or "", html_text(row.get("Body") or "")
    return Document(name, f"{title}\n{body}" if title else body)

"""Every format gives its documents, and says of what is none why."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma

import pytest
from fastwarc import ZstdWriter

from moshijax.data.raw_text import formats, wiki
from moshijax.data.raw_text.formats import Document, Refused
from moshijax.errors import ConfigError
from tests.data.raw_text import made


def zstd(data: bytes) -> bytes:
    buffer = io.BytesIO()
    writer = ZstdWriter(buffer)
    writer.write(data)
    writer.close()
    return buffer.getvalue()


PACK = {"": bytes, ".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress, ".zst": zstd}


def read(path, content: bytes | str, field: str = "text") -> list:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return list(formats.reader(path, field)())


def kinds(found: list) -> list:
    return [part.kind if isinstance(part, Refused) else part.text for part in found]


@pytest.mark.parametrize("packed", PACK)
def test_lines_are_documents_in_every_compression(tmp_path, packed):
    pack = PACK[packed]
    text = "\ufefffirst line\n\n  \nsecond\u2028line\r\nlast".encode() + b"\n\xff\xfe\n"
    found = read(tmp_path / f"a.txt{packed}", pack(text))
    assert [part.name for part in found] == ["line 1", "line 4", "line 5", "line 6"]
    assert kinds(found)[:3] == ["first line\n", "second\u2028line\r\n", "last\n"] and kinds(found)[3] == "encoding"


def test_json_lines(tmp_path):
    lines = ['{"text": "one"}', "not json", '{"other": 1}', '{"text": 7}', '["text"]', '{"text": "two\\nlines"}']
    found = read(tmp_path / "a.jsonl.gz", gzip.compress("\n".join(lines).encode()))
    assert kinds(found) == ["one", "json", "no_text", "no_text", "no_text", "two\nlines"]
    inner = read(tmp_path / "b.jsonl", '{"a": {"b": "x"}}\n{"a": "x"}\n', "a.b")
    assert kinds(inner) == ["x", "no_text"]


def test_a_line_too_long_is_told_of_and_what_follows_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(formats, "LONGEST", 20)
    found = read(tmp_path / "a.txt", b"a" * 20 + b"\n" + b"b" * 75 + b"\n" + b"c" * 20)
    assert kinds(found) == ["too_long", "too_long", "c" * 20]  # the first is 21 bytes with its end
    assert kinds(read(tmp_path / "b.txt", b"a" * 19 + b"\nnext")) == ["a" * 19 + "\n", "next"]


def test_a_damaged_file_keeps_what_was_read_and_says_so(tmp_path):
    content = "".join(f"{made.sentence(made.random.Random(n))} {n}\n" for n in range(2000)).encode()
    whole = read(tmp_path / "a.txt.gz", gzip.compress(content))
    assert len(whole) == 2000
    cut = read(tmp_path / "b.txt.gz", gzip.compress(content)[:-2000])
    assert cut[:-1] == whole[: len(cut) - 1] and len(cut) > 100
    assert cut[-1].kind == "unreadable" and f"after {len(cut) - 1} documents" in cut[-1].reason
    assert kinds(read(tmp_path / "c.txt.gz", b"no gzip at all")) == ["unreadable"]
    assert kinds(read(tmp_path / "c.txt.xz", b"no xz at all")) == ["unreadable"]
    assert kinds(read(tmp_path / "c.txt.zst", b"no zstd at all")) == ["unreadable"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_wet(tmp_path, compress):
    content = made.wet({"http://a/1": "Café\ntwo".encode(), "http://a/2": b"\xff\xfe\x00", "http://a/3": b"three"})
    found = read(tmp_path / "a.warc.wet.gz", compress(content))
    assert [part.name for part in found] == ["http://a/1", "http://a/2", "http://a/3"]
    assert kinds(found) == ["Café\ntwo", "encoding", "three"]


def test_an_archive_that_breaks_off(tmp_path):
    content = made.wet({"http://a/1": b"one" * 50, "http://a/2": b"two" * 50})
    found = read(tmp_path / "a.wet", content[:-40])
    assert kinds(found) == ["one" * 50, "unreadable"]
    assert kinds(read(tmp_path / "b.wet", b"nothing of the kind" * 20)) == ["unreadable"]


def test_warc_pages_become_their_main_content(tmp_path):
    body = (
        "<html><body><nav><a href='/'>Menu</a></nav><main><p>{} is a long paragraph of the page itself, which has "
        "text.</p></main></body></html>"
    )
    content = made.warc(
        {
            "http://a/1": ("text/html; charset=iso-8859-1", body.format("Café").encode("latin-1")),
            "http://a/2": ("text/html", body.format("Tëxt").encode()),
            "http://a/3": ("image/png", b"\x89PNG"),
        }
    )
    found = read(tmp_path / "a.warc.gz", gzip.compress(content))
    first, second, third = kinds(found)
    assert first.strip() == "Café is a long paragraph of the page itself, which has text."
    assert second.strip().startswith("Tëxt is") and third == "media_type" and len(found) == 3


def test_a_dump_of_wikipedia(tmp_path):
    text = (
        "'''Foo''' is a [[thing|kind of thing]].<ref name=x>A book, [[page]]</ref> {{infobox|a=[[b]]}}\n\n\n"
        "== History ==\n* seen [[Fichier:x.jpg|thumb|A [[caption]]]] here\n{| class=x\n|-\n| cell || other\n|}\n"
        "[[Catégorie:Things]] [[de:Ding]] see [http://x.y a page], [[:Category:Bar|bars]], [[Star Trek: Voyager]] "
        "and AT&amp;T.<!-- no -->"
    )
    dump = made.mediawiki([("Foo & bar", "0", text), ("Talk:Foo", "1", "words"), ("Empty", "0", "")], ("Foos",))
    found = read(tmp_path / "frwiki-1-pages-articles1.xml-p1p9.bz2", bz2.compress(dump.encode()))
    assert [part.name for part in found] == ["Foo & bar", "Talk:Foo", "Empty", "Foos"]
    page, *others = kinds(found)
    assert others == ["namespace", "empty", "redirect"]
    assert page.split("\n") == [
        "Foo & bar",
        "Foo is a kind of thing.",
        "History",
        "seen  here",
        "see a page, bars, Star Trek: Voyager and AT&T.",
    ]


def test_wikitext_that_is_not_well_formed_is_still_text():
    for source in ("{{open [[link", "</ref> x <ref>", "{| a\n| b", "[[File:a.jpg|[[File:b.jpg|c]] d", "'''''", "<ref"):
        assert isinstance(wiki.plain(source), str)


def test_a_dump_of_stackexchange(tmp_path):
    posts = made.stackexchange(
        [
            {
                "Id": "1",
                "PostTypeId": "1",
                "Title": "Why <b>?",
                "Body": "<p>Because &amp; so.</p>\n<ul><li>one</li></ul>",
            },
            {"Id": "2", "PostTypeId": "2", "ParentId": "1", "Body": "<p>An answer</p>"},
            {"Id": "3", "PostTypeId": "4", "Body": "<p>A tag</p>"},
        ]
    )
    found = read(tmp_path / "Posts.xml", posts)
    assert [part.name for part in found] == ["post 1", "post 2", "post 3"]
    first, second, third = kinds(found)
    assert [line.strip() for line in first.split("\n") if line.strip()] == ["Why <b>?", "Because & so.", "one"]
    assert second.strip() == "An answer" and third == "other_post"


def test_a_dump_that_breaks_off_or_is_none(tmp_path):
    dump = made.mediawiki([("A", "0", "text of a"), ("B", "0", "text of b")])
    found = read(tmp_path / "a.xml", dump[: dump.index("text of b")])
    assert found[0] == Document("A", "A\ntext of a") and found[1].kind == "unreadable" and len(found) == 2
    assert "root is <html>" in read(tmp_path / "b.xml", "<html/>")[0].reason
    assert kinds(read(tmp_path / "c.xml", "")) == ["unreadable"]
    bomb = '<!DOCTYPE m [<!ENTITY a "aaaaaaaaaa">' + "".join(
        f'<!ENTITY {chr(98 + n)} "{f"&{chr(97 + n)};" * 10}">' for n in range(9)
    )
    assert (
        kinds(read(tmp_path / "d.xml", bomb + "]><mediawiki><page><title>&j;</title></page></mediawiki>"))[-1]
        == "unreadable"
    )


def test_names_that_say_nothing_of_the_format(tmp_path):
    for name, remedy in (
        ("Posts.7z", "7z x"),
        ("a.parquet", "JSON lines"),
        ("a.pdf", "use .warc"),
        ("a.gz", "use .warc"),
    ):
        with pytest.raises(ConfigError, match=f"{name} is of no format that is read.*{remedy}"):
            formats.reader(tmp_path / name)

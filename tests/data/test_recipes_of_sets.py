"""The recipes in `data/`: licence, hours, checksum, commands; the tiny commands run on made-up files of that form."""

from __future__ import annotations

import bz2
import gzip
import hashlib
import json
import re
import shlex
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from moshijax import g711
from moshijax.shipped import folder
from tests.data.raw_text import made as raw
from tests.data.sets import LevelEncoder, tones, write_item

RECIPES = sorted(path for path in folder("data").glob("*/README.md") if "# tiny" in path.read_text())
#: Its models do not ship with any package.
NOT_TINY = ["data", "diarize"]
FIELDS = {"what", "source", "licence", "expected hours", "checksum of the manifest"}


def lines_of(text: str, tiny: bool) -> list[str]:
    """The lines of the tiny block, or of all others."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, flags=re.M | re.S)
    found = [block.removeprefix("# tiny\n") for block in blocks if block.startswith("# tiny") == tiny]
    return "".join(found).splitlines()


def commands(text: str, tiny: bool) -> list[list[str]]:
    """The words of the `moshijax` commands of the tiny block, or of all others."""
    return [shlex.split(line)[1:] for line in lines_of(text, tiny) if line.startswith("moshijax ")]


def dailytalk(root: Path) -> None:
    (root / "dailytalk").mkdir()
    speakers = ("SPEAKER_MAIN", "SPEAKER_USER")
    words = [[f"w{n % 4}", [n * 0.5, n * 0.5 + 0.25], speakers[n % 2]] for n in range(44)]
    line = write_item(root / "dailytalk", "one", words, tones(words, seconds=23.0))
    (root / "dailytalk" / "dailytalk.jsonl").write_text(json.dumps(line) + "\n")


def instructions(root: Path) -> None:
    entries = [("What is 2 + 2?", "It is 4."), ("Print x", "`print(x)`")]
    content = [{"instruction": question, "input": "", "output": answer} for question, answer in entries]
    (root / "alpaca_data.json").write_text(json.dumps(content))


def conversations(root: Path) -> None:
    instructions(root)
    (root / "ultrachat_text").mkdir()
    chat = {"id": "0", "data": ["How far is it?", "It is 3 km.", "Thanks.", "Bye."]}
    (root / "ultrachat_text" / "train_0.jsonl").write_text(json.dumps(chat) + "\n")
    (root / "cast.txt").write_text("model: en-us+f4\nuser: random espeak-ng\nuser: en-us+m3\n")


def speech(text: str) -> tuple[np.ndarray, int]:
    """Samples by espeak-ng, with silence at both ends, and their rate."""
    from moshijax.data.synthesis import EspeakVoice
    from moshijax.data.synthesis.espeak import Espeak

    espeak = Espeak(0)
    try:
        made = espeak.speak(text, EspeakVoice(rate=140))
    finally:
        espeak.close()
    return np.pad(made.samples, 2000), made.sample_rate


def speak(path: Path) -> None:
    """A sentence, in the format of the set."""
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, *speech("The train leaves at eight in the morning."))


def librispeech(root: Path) -> None:
    chapter = root / "LibriSpeech" / "train-clean-100" / "103" / "1240"
    speak(chapter / "103-1240-0000.flac")
    (chapter / "103-1240.trans.txt").write_text("103-1240-0000 THE TRAIN LEAVES AT EIGHT IN THE MORNING\n")


def podcasts(root: Path) -> None:
    speak(root / "podcasts" / "one.ogg")
    (root / "podcasts" / "one.rttm").write_text("SPEAKER one 1 0.0 3.0 <NA> <NA> A <NA> <NA>\n")


def fisher(root: Path) -> None:
    """An utterance on each channel."""
    calls, texts = root / "LDC2004S13" / "audio" / "000", root / "LDC2004T19" / "data" / "trans" / "000"
    calls.mkdir(parents=True), texts.mkdir(parents=True)
    turn, rate = speech("Good morning.")
    seconds, pair = len(turn) / rate, np.zeros((2 * len(turn), 2), np.float32)
    pair[: len(turn), 0] = pair[len(turn) :, 1] = turn
    signal = soxr.resample(pair, rate, 8000)
    fields = (
        "conversation_id -s5 00001", f"sample_count -i {len(signal)}", "sample_n_bytes -i 1", "channel_count -i 2",
        "sample_rate -i 8000", "sample_coding -s4 ulaw", "end_head", "",
    )  # fmt: skip
    head = ("NIST_1A\n   1024\n" + "\n".join(fields)).encode().ljust(1024)
    (calls / "fe_03_00001.sph").write_bytes(head + g711.MU_LAW.encode(signal.reshape(-1)))
    lines = [f"{n * seconds:.2f} {(n + 1) * seconds:.2f} {'AB'[n % 2]}: good morning\n" for n in range(2)]
    (texts / "fe_03_00001.txt").write_text("# fe_03_00001.sph\n\n" + "\n".join(lines))


def common_crawl(root: Path) -> None:
    (root / "crawl").mkdir()
    pages = {f"http://a.org/{n}": raw.english(n).encode() for n in range(20)}
    (root / "crawl" / "CC-MAIN-1.warc.wet.gz").write_bytes(gzip.compress(raw.wet(pages)))


def wikipedia(root: Path) -> None:
    for name, first in (("enwiki", 0), ("enwikibooks", 20)):
        pages = [(f"Page {n}", "0", raw.english(n)) for n in range(first, first + 20)]
        (root / f"{name}-latest-pages-articles.xml.bz2").write_bytes(bz2.compress(raw.mediawiki(pages).encode()))


def stackexchange(root: Path) -> None:
    (root / "cooking").mkdir()
    question, answer = (f"<p>{raw.english(n)}</p>" for n in (1, 2))
    rows = [
        {"Id": "1", "PostTypeId": "1", "Title": "How?", "Body": question, "AcceptedAnswerId": "2", "Score": "5"},
        {"Id": "2", "PostTypeId": "2", "ParentId": "1", "Score": "3", "Body": answer},
    ]
    (root / "cooking" / "Posts.xml").write_text(raw.stackexchange(rows))


MADE: dict[str, Callable[[Path], None]] = {
    "dailytalk": dailytalk,
    "alpaca": instructions,
    "instruct_s2s": conversations,
    "librispeech": librispeech,
    "podcasts": podcasts,
    "fisher": fisher,
    "common_crawl": common_crawl,
    "wikipedia": wikipedia,
    "stackexchange": stackexchange,
}


def test_every_recipe_has_made_up_files() -> None:
    assert {path.parent.name for path in RECIPES} == MADE.keys()


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_a_recipe_states_licence_hours_and_checksum_and_its_tiny_commands_are_those_of_the_full_ones(path) -> None:
    text = path.read_text()
    rows = dict(re.findall(r"^\| ([\w ]+) \| (.+) \|$", text, flags=re.M))
    assert rows.keys() >= FIELDS
    full, tiny = commands(text, tiny=False), commands(text, tiny=True)
    wanted = [words[:2] for words in full if words[0] == "data" and words[:2] != NOT_TINY]
    assert [words[:2] for words in tiny] == wanted


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.parent.name)
def test_the_tiny_commands_run(path, cli, tmp_path, monkeypatch) -> None:
    from moshijax.data import encoder
    from moshijax.data.text import train_tokenizer

    text = path.read_text()
    for package in ("espeakng_loader", *(["faster_whisper"] if "tiny.en" in text else [])):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(encoder.CodecEncoder, "load", classmethod(lambda cls, path, count=None: LevelEncoder()))
    MADE[path.parent.name](tmp_path)
    train_tokenizer(["w0 w1 w2 w3"], 300, byte_fallback=True).save(tmp_path / "tokenizer.model")
    for line in lines_of(text, tiny=True):
        if not line.startswith("moshijax "):
            subprocess.run(line, shell=True, check=True)
            continue
        code, out, error = cli(*shlex.split(line)[1:])
        assert code == 0, f"{line}: {error or out}"
    for made in ("prepared", "mixed", "diarized", "recognition"):
        if f" {made} " in text and "tiny.en" not in text:
            assert json.loads((tmp_path / made / "dataset.json").read_text())["report"]["usable"] > 0
    check_sums(text, tmp_path)


def check_sums(text: str, root: Path) -> None:
    """Check that the checksums are where the recipe says, and are those of the files."""
    [row] = re.findall(r"^\| checksum of the manifest \| (.+) \|$", text, flags=re.M)
    for line in re.findall(r"`sha256sum ([^`]+)`", row):
        assert all((root / name).is_file() for name in line.split())
    for field, name in re.findall(r"`([\w.]+)` in `([^`]+)`", row):
        found = json.loads((root / name).read_text())
        for part in field.split("."):
            found = found[part]
        for made, sha256 in found.items() if isinstance(found, dict) else ():
            assert hashlib.sha256((root / name).with_name(made).read_bytes()).hexdigest() == sha256
        assert found and (isinstance(found, dict) or re.fullmatch("[0-9a-f]{64}", found))
    for name in re.findall(r"of every file in `([^`]+)`", row):
        seen = [result["sources"].values() for result in json.loads((root / name).read_text())]
        hashes = {one[-1] for items in seen for files in items for one in files.values() if one}
        there = [path for path in root.rglob("*") if path.is_file()]
        assert hashes and hashes <= {hashlib.sha256(path.read_bytes()).hexdigest() for path in there}

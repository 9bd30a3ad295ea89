"""Fisher English, as the LDC distributes it, to a manifest that `align` and `prepare` read.

A call is `fe_03_00001.sph` (NIST SPHERE, two channels, 8 kHz mu-law) in LDC2004S13 and LDC2005S13, its transcript
`fe_03_00001.txt` (lines `3.76 5.54 A: words`) in LDC2004T19 and LDC2005T19, with a table of the callers. Calls become
WAV files of the same samples, which every stage reads, with the utterances beside them as STM.
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from moshijax import files, optional
from moshijax.annotations import shown
from moshijax.data import audio
from moshijax.data.checks import check_recording, unmade
from moshijax.data.findings import CheckedItem, Report
from moshijax.data.isolation import Isolated
from moshijax.data.known_text import said
from moshijax.data.manifest import Item, Manifest
from moshijax.data.recording_stage import Progress, over_recordings
from moshijax.errors import DataError
from moshijax.recordings import is_shortened

REPORT = "fisher.report.json"
MANIFEST = "manifest.jsonl"
_CALL = re.compile(r"fe_03_(\d{5})")
_LINE = re.compile(r"(\d+(?:\.\d+)?)\s+(\d+(?:\.\d+)?)\s+([AB]):\s*(.*)")
_CHANNELS = "AB"
_LATE = 1.0  # seconds by which an utterance may end after its call


@dataclass(frozen=True)
class Speaker:
    """Somebody in a call.

    Attributes:
      pin: number of the person; "" without a table.
      sex: "f", "m" or "".
      dialect: "a" American, "o" other, or "".
    """

    pin: str = ""
    sex: str = ""
    dialect: str = ""


@dataclass(frozen=True)
class Utterance:
    """What one speaker says at once.

    Attributes:
      start: in seconds.
      end: in seconds.
      channel: 0 for A, 1 for B.
      text: as the LDC writes it.
    """

    start: float
    end: float
    channel: int
    text: str


def convert(
    recordings: Path, transcripts: Path, out: Path, max_rejected: float = 0.1, progress: Progress | None = None
) -> Report:
    """Write the calls as WAV files with STM files beside them, `manifest.jsonl`, and a report, into a folder.

    A call that is there already is kept. The manifest is written last, with the calls that are usable, each with both
    of its sides: either caller is the model's speaker in a record of his own.

    Args:
      recordings: folder below which the calls are.
      transcripts: folder below which transcripts and tables are.
      out: folder, which may be there.
      max_rejected: share of the calls; a job with more of them rejected stops.
      progress: see `over_recordings`.

    Raises:
      DataError: there are no calls or transcripts, two of one number, a table of another form, or too many rejections.
      MoshijaxError: a file cannot be written, or `desphere` is missing where calls are compressed by shorten.
    """
    calls, texts = _numbered(recordings, ".sph", "call"), _numbered(transcripts, ".txt", "transcript")
    for found, folder, names, sets in (
        (calls, recordings, "fe_03_*.sph", "calls of LDC2004S13 or LDC2005S13"),
        (texts, transcripts, "fe_03_*.txt", "transcripts of LDC2004T19 or LDC2005T19"),
    ):
        if not found:
            raise DataError(f"{folder} holds no {names}: name the folder with the {sets}")
    speakers = _speakers(sorted(transcripts.rglob("*calldata.tbl")))
    out.mkdir(parents=True, exist_ok=True)
    lines: list[str] = []

    def one(item: Item, isolated: Isolated) -> CheckedItem:
        checked = CheckedItem(item)
        try:
            checked = _call(item, texts, speakers.get(item.id, (Speaker(), Speaker())), out, isolated)
        except audio.DecoderLost as error:
            checked.kind, checked.rejected = "decoder", str(error)
        except Exception as error:
            checked.kind, checked.rejected = unmade(item, error)
        if checked.rejected is None:
            about = [vars(speaker) for speaker in speakers.get(item.id, ())]
            lines.append(json.dumps({
                "path": f"{checked.item.audio.name}", "duration": round(checked.info.duration, 3),
                "sides": "both",
                **({"speakers": about} if about else {}),
            }))  # fmt: skip
        return checked

    items = tuple(Item(number, path, None) for number, path in sorted(calls.items()))
    manifest = Manifest(out / MANIFEST, items, "")
    report = over_recordings(manifest, one, {"corpus": "Fisher"}, REPORT, max_rejected, progress)
    files.write(out / MANIFEST, "".join(f"{line}\n" for line in lines))
    return report


def _call(
    item: Item, texts: dict[str, Path], speakers: Sequence[Speaker], out: Path, isolated: Isolated
) -> CheckedItem:
    if item.id not in texts:
        return CheckedItem(
            item, kind="transcript", rejected=f"recording {item.audio} has no transcript fe_03_{item.id}.txt: fetch it"
        )
    target = out / f"fe_03_{item.id}.wav"
    if not target.exists():
        with files.staged(target) as partial:
            audio.apart(isolated, unpack, item.audio, item.audio, partial)
    checked = audio.apart(isolated, check_recording, target, Item(item.id, target, None))
    if checked.rejected is not None:
        return checked
    if checked.info.channels != 2:
        checked.kind = "channels"
        checked.rejected = f"recording {item.audio} has {checked.info.channels} channels: a call has two"
        return checked
    try:
        found = read_transcript(texts[item.id], checked.info.duration)
    except DataError as error:
        checked.kind, checked.rejected = "transcript", str(error)
        return checked
    stm = [
        f"{target.stem} {_CHANNELS[u.channel]} {speakers[u.channel].pin or _CHANNELS[u.channel]} "
        f"{u.start:.2f} {u.end:.2f} <o,{speakers[u.channel].sex or 'x'}> {u.text}"
        for u in found
    ]
    files.write(target.with_suffix(".stm"), "".join(f"{line}\n" for line in stm))
    checked.flags["no_words"] += not any(said(u.text) for u in found)
    checked.flags = +checked.flags
    return checked


def unpack(path: Path, out: Path) -> None:
    """Write a SPHERE file as a WAV file of the same samples: mu-law stays mu-law, and shorten is unpacked to 16 bits.

    Raises:
      DataError: it cannot be decoded, or breaks off.
      MissingPackage: it is compressed by shorten, and `desphere` is not installed.
    """
    soundfile = optional.load("soundfile")
    if is_shortened(path):
        desphere = optional.load("desphere")
        try:
            out.write_bytes(desphere.transcode_bytes(path.read_bytes()))
        except (desphere.DesphereError, ValueError, IndexError, EOFError) as error:
            raise DataError(f"recording {path} cannot be unpacked ({error}): copy it again, or try sph2pipe") from error
        return
    info = audio.probe(path)
    subtype = soundfile.info(str(path)).subtype
    with soundfile.SoundFile(out, "w", info.sample_rate, info.channels, subtype, format="WAV") as file:
        for block in audio.blocks(path, info.sample_rate, tuple(range(info.channels)), extent=info.extent):
            file.write(block)


def read_transcript(path: Path, duration: float) -> list[Utterance]:
    """Read a transcript of the LDC, whose lines are `start end A: words`, blank, or begin with #.

    Raises:
      DataError: a line has another form, ends before it begins, or begins after the end of the call.
    """
    found = []
    for number, line in enumerate(files.lines(files.read_text(path, "transcript")), 1):
        if not line.strip() or line.startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        start, end = (float(match[1]), float(match[2])) if match else (math.nan, math.nan)
        if not start <= end:
            raise DataError(f"{path}, line {number}: {shown(line)} is not `start end A: words`: fetch the file again")
        if end > duration + _LATE:
            raise DataError(
                f"{path}, line {number}: {shown(line)} ends after the call, which lasts {duration:.2f} s: the files do "
                "not belong together, or the call breaks off"
            )
        if said(match[4]):
            found.append(Utterance(start, end, _CHANNELS.index(match[3]), " ".join(match[4].split())))
    return found


def _numbered(folder: Path, suffix: str, what: str) -> dict[str, Path]:
    found: dict[str, Path] = {}
    for path in sorted(folder.rglob(f"fe_03_*{suffix}")):
        if match := _CALL.fullmatch(path.stem):
            if match[1] in found:
                raise DataError(f"{found[match[1]]} and {path} are both {what} {match[1]}: remove one of them")
            found[match[1]] = path
    return found


def _speakers(tables: Sequence[Path]) -> dict[str, tuple[Speaker, Speaker]]:
    """Read the tables of calls: who speaks on which channel, as CALL_ID, APIN, ASX.DL, BPIN and BSX.DL say."""
    found: dict[str, tuple[Speaker, Speaker]] = {}
    for path in tables:
        rows = csv.DictReader(io.StringIO(files.read_text(path, "table")))
        missing = {"CALL_ID", "APIN", "ASX.DL", "BPIN", "BSX.DL"} - set(rows.fieldnames or ())
        if missing:
            raise DataError(f"table {path} has no column {', '.join(sorted(missing))}: fetch it again")
        for row in rows:
            pair = []
            for side in "AB":
                sex, _, dialect = (row[f"{side}SX.DL"] or "").partition(".")
                pair.append(Speaker(row[f"{side}PIN"] or "", sex, dialect))
            found[row["CALL_ID"]] = (pair[0], pair[1])
    return found

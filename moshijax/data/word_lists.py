"""Word lists of other programs, recognised by their structure, as the alignments of a sidecar.

An alignment is [word, [start, end], speaker] or [word, [start, end], speaker, score]: times in seconds from the start
of the recording, None where nobody knows. Where no speaker is named the channel stands for it, if there is one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from moshijax import files
from moshijax.annotations import shown
from moshijax.errors import DataError

_TEXT = ("word", "text")
_START, _END = ("start", "start_time"), ("end", "end_time")
_SPEAKER = ("speaker", "speaker_label")
_SCORE = ("score", "confidence", "probability")


def alignments_of(content: Any) -> list[Any] | None:
    """Return the alignments of what a JSON file holds, None if it is no word list of a known form.

    Raises:
      DataError: the form is known, but has no times of words.
    """
    if isinstance(content, list):
        content = {"supervisions" if _all_have(content, "recording_id") else "words": content}
    if not isinstance(content, dict):
        return None
    if isinstance(content.get("alignments"), list):
        return [_entry(word) if isinstance(word, dict) else word for word in content["alignments"]]
    if isinstance(content.get("supervisions"), list):
        return read_supervisions(content["supervisions"], content.get("start"))
    words, segments = content.get("words"), content.get("segments")
    if words and _all_have(words, *_TEXT):
        return read_words(words)
    if segments and _all_have(segments, "text", "words"):
        return read_segments(segments)
    return [] if [] in (words, segments) and not content.get("text") else None


def _all_have(entries: Any, *keys: str) -> bool:
    """Whether `entries` is a list of dicts, each with one of the keys."""
    return isinstance(entries, list) and all(isinstance(e, dict) and any(key in e for key in keys) for e in entries)


def _entry(word: Mapping[str, Any], speaker: Any = None) -> list[Any]:
    def first(keys: tuple[str, ...]) -> Any:
        return next((word[key] for key in keys if word.get(key) is not None), None)

    label = first(_SPEAKER)
    return [first(_TEXT), [first(_START), first(_END)], speaker if label is None else label, first(_SCORE)]


def read_words(words: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Read words with times, alone or as "words" of an object.

    `[{"word": "hi", "start": 0.31, "end": 0.62}]`, as in OpenAI's `verbose_json` and many others. The diarization of
    NeMo has the keys "start_time", "end_time" and "speaker" (or "speaker_label"). "speaker", and "score", "confidence"
    or "probability", may be missing.
    """
    return [_entry(word) for word in words]


def read_segments(segments: Iterable[Mapping[str, Any]]) -> list[Any]:
    """Read the segments of Whisper's relatives.

    `{"segments": [{"start": 0.3, "end": 1.2, "text": " Hi.", "words": [{"word": "Hi.", "start": 0.31, "end": 0.62,
    "score": 0.9, "speaker": "SPEAKER_00"}]}], "language": "en"}`, as WhisperX writes it; words may lack times (numbers
    do) and a speaker, which is then the segment's. whisper-timestamped has "text" for "word" and "confidence" for
    "score", faster-whisper "probability".

    Raises:
      DataError: a segment has a text and no words.
    """
    found = []
    for number, segment in enumerate(segments):
        words = segment.get("words") or []
        has_text = bool(str(segment.get("text") or "").strip())
        if not _all_have(words, *_TEXT) or (has_text and not words):
            raise DataError(f'segment {number} {shown(segment.get("text"))} has no "words": ask for times of words')
        found += [_entry(word, segment.get("speaker")) for word in words]
    return found


def read_supervisions(supervisions: Iterable[Any], cut_start: float | None = None) -> list[Any]:
    """Read supervisions of lhotse, alone or those of a cut, whose times count from where the cut starts.

    `[{"id": "s1", "recording_id": "call", "start": 0.3, "duration": 0.9, "channel": 0, "text": "hi", "speaker": "A",
    "alignment": {"word": [["hi", 0.31, 0.31, 0.9]]}}]`. An item of the alignment is [symbol, start, duration, score],
    with the start counted from that of the recording; before lhotse 1.8 it was an object with these keys. Without a
    speaker the label is the channel.

    Raises:
      DataError: a supervision has a text and no alignment of words.
    """
    found = []
    for supervision in supervisions:
        try:
            items = (supervision.get("alignment") or {}).get("word") or []
            if not items and str(supervision.get("text") or "").strip():
                raise DataError(
                    f'supervision {shown(supervision.get("id"))} has no alignment "word": align it, as with '
                    "`lhotse workflows align-with-torchaudio`"
                )
            label = supervision.get("speaker")
            for item in items:
                text, start, duration, *score = item.values() if isinstance(item, dict) else item
                start = float(start) + float(cut_start or 0)
                times = [start, start + float(duration)]
                found.append([text, times, supervision.get("channel") if label is None else label, *score])
        except (AttributeError, TypeError, ValueError) as error:
            raise DataError(f"supervision {shown(supervision)} is not one of lhotse ({error})") from error
    return found


def read_ctm(path: Path) -> list[Any]:
    """Read a CTM file: lines `recording channel start duration word [score]`, as aligners such as NeMo's write them.

    The second field, which is a channel or a speaker, is the label.

    Raises:
      DataError: the file cannot be read, or a line has another form.
    """
    found = []
    for number, fields in lines_of_recording(path, "transcript", 0)[0]:
        try:
            _, label, start, duration, text, *rest = fields
            times = [float(start), float(start) + float(duration)]
        except ValueError as error:
            raise DataError(
                f"{path}, line {number}: {shown(' '.join(fields))} is not `recording channel start duration word`: "
                "write the file again"
            ) from error
        found.append([text, times, label, *(rest[:1] if _is_number(rest[:1]) else ())])
    return found


def _is_number(fields: list[str]) -> bool:
    try:
        return bool(fields) and float(fields[0]) is not None
    except ValueError:
        return False


def lines_of_recording(path: Path, what: str, field: int, kind: str = "") -> tuple[list[tuple[int, list[str]]], int]:
    """Split the lines of a CTM or RTTM file that belong to the recording of the same name.

    If all lines name one recording they belong to it, as its name may have changed since.

    Args:
      path: of the file, named like the recording.
      what: it is, for messages.
      field: number of the one that names the recording.
      kind: what the first field of a line must be; others are left out. "": anything but `;;`, which begins a comment.

    Returns:
      Number and fields of every line that belongs to the recording, and how many belong to others.

    Raises:
      DataError: the file cannot be read, or is of several recordings and not of this one.
    """
    # Bytes in another encoding are those of names, which only have to differ.
    text = files.read_text(path, what, errors="backslashreplace")
    split = [(number, line.split()) for number, line in enumerate(files.lines(text), 1)]
    found = [(number, f) for number, f in split if len(f) > field and (f[0] == kind if kind else f[0][:2] != ";;")]
    names = {fields[field] for _, fields in found}
    if len(names) < 2:
        return found, 0
    own = {name for name in names if path.stem in (name, Path(name).stem)}
    if not own:
        some = ", ".join(sorted(names)[:3])
        raise DataError(f"{what} {path} is of {len(names)} other recordings ({some}, ...): it must be of {path.stem}")
    kept = [(number, fields) for number, fields in found if fields[field] in own]
    return kept, len(found) - len(kept)

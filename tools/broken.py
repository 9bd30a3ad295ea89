"""Write a set of recordings of which most are broken, each in another way that was seen in the wild.

python -m tools.broken FOLDER

The same bytes every time. `moshijax data validate FOLDER` rejects the broken ones, each with its kind in `BROKEN`.
"""

from __future__ import annotations

import argparse
import gzip
import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import soundfile

RATE = 24_000
SECONDS = 2.0
WORDS = [["hello", [0.3, 0.6], "SPEAKER_USER"], ["yes", [1.0, 1.3], "SPEAKER_MAIN"]]


class Fault(NamedTuple):
    """A way to be broken.

    Attributes:
      kind: of the rejection.
      write: writes the recording and its transcript, given the path of the recording.
      suffix: of the recording.
    """

    kind: str
    write: Callable[[Path], None]
    suffix: str = ".wav"


def tones(rate: int = RATE) -> np.ndarray:
    """Return two channels [N, 2] float32, with a tone for each word: left the model's speaker, right the user's."""
    times = np.arange(round(SECONDS * rate)) / rate
    found = np.zeros((len(times), 2), np.float32)
    for number, (_, (start, end), speaker) in enumerate(WORDS):
        inside = (times >= start) & (times < end)
        tone = 0.2 * np.sin(2 * np.pi * (200 + 40 * number) * times)
        found[inside, 0 if speaker == "SPEAKER_MAIN" else 1] = tone[inside]
    return found


def noise() -> np.ndarray:
    """Return a second of two different noises [N, 2] float32."""
    return (0.1 * np.random.default_rng(0).standard_normal((RATE, 2))).astype(np.float32)


def transcribe(path: Path, alignments: object = WORDS) -> None:
    path.with_suffix(".json").write_text(json.dumps({"alignments": alignments}))


def sound(samples: np.ndarray, rate: int = RATE, subtype: str = "PCM_16") -> Callable[[Path], None]:
    def write(path: Path) -> None:
        soundfile.write(path, samples, rate, subtype=None if path.suffix != ".wav" else subtype)
        data = path.read_bytes()
        if (at := data.find(b"PEAK")) > 0:  # holds the time
            path.write_bytes(data[: at + 12] + bytes(4) + data[at + 16 :])
        transcribe(path)

    return write


def content(data: bytes) -> Callable[[Path], None]:
    """A file that holds these bytes."""

    def write(path: Path) -> None:
        path.write_bytes(data)
        transcribe(path)

    return write


def changed(change: Callable[[bytes], bytes], samples: np.ndarray | None = None) -> Callable[[Path], None]:
    """A good recording whose bytes are changed."""

    def write(path: Path) -> None:
        sound(tones() if samples is None else samples)(path)
        path.write_bytes(change(path.read_bytes()))

    return write


def words(alignments: object) -> Callable[[Path], None]:
    """A good recording with another list of words."""

    def write(path: Path) -> None:
        sound(tones())(path)
        transcribe(path, alignments)

    return write


def sidecar(data: bytes | None) -> Callable[[Path], None]:
    """A good recording with these bytes as its transcript; None: without one."""

    def write(path: Path) -> None:
        sound(tones())(path)
        path.with_suffix(".json").unlink()
        if data is not None:
            path.with_suffix(".json").write_bytes(data)

    return write


def field(offset: int, form: str, value: int) -> Callable[[bytes], bytes]:
    """Put a number into the header of a WAV file."""
    size = struct.calcsize(form)
    return lambda data: data[:offset] + struct.pack(form, value) + data[offset + size :]


def spoilt(data: bytes) -> bytes:
    """Noise over the middle fifth."""
    first, last = 2 * len(data) // 5, 3 * len(data) // 5
    return data[:first] + np.random.default_rng(0).bytes(last - first) + data[last:]


def folder(path: Path) -> None:
    path.mkdir()
    transcribe(path)


def with_value(value: float) -> np.ndarray:
    samples = tones()
    samples[1000, 0] = value
    return samples


def late() -> np.ndarray:
    """One signal on both channels, 5 ms apart."""
    one = noise()[:, 0]
    return np.stack([one, np.concatenate([np.zeros(RATE // 200, np.float32), one])[: len(one)]], axis=1)


_LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 499723\n"
_ANNEX = b"/annex/objects/SHA256E-s499723--" + b"0" * 64 + b".wav\n"
_PAGE = b"<!DOCTYPE html><html><head><title>404 Not Found</title></head><body>" + b"<p>nothing here</p>" * 20
_ENTRY = ["hello", [0.3, 0.6], "SPEAKER_USER"]

#: The ways, by the names of their recordings.
BROKEN: dict[str, Fault] = {
    # Not audio, or not all of it.
    "empty": Fault("unreadable", content(b"")),
    "forty-bytes": Fault("unreadable", content(b"RIFF" + bytes(36))),
    "text": Fault("unreadable", content(b"this is no recording, whatever its name says\n" * 20)),
    "zeros": Fault("unreadable", content(bytes(10_000))),
    "random": Fault("unreadable", content(np.random.default_rng(0).bytes(10_000))),
    "error-page": Fault("unreadable", content(_PAGE)),
    "error-json": Fault("unreadable", content(json.dumps({"error": "quota exceeded " * 10}).encode())),
    "gzip": Fault("unreadable", changed(lambda data: gzip.compress(data, mtime=0))),
    "zip": Fault("unreadable", content(b"PK\x03\x04" + bytes(200))),
    "lfs": Fault("unreadable", content(_LFS)),
    "annex": Fault("unreadable", content(_ANNEX)),
    "gone": Fault("unreadable", transcribe),
    "folder": Fault("unreadable", folder),
    "half": Fault("unreadable", changed(lambda data: data[: len(data) // 2])),
    "head-lost": Fault("unreadable", changed(lambda data: data[1000:])),
    "joined": Fault("unreadable", changed(lambda data: data + data)),
    "other-magic": Fault("unreadable", changed(lambda data: b"LIST" + data[4:])),
    "malformed-fmt": Fault("unreadable", changed(field(16, "<I", 3))),
    "no-coding": Fault("unreadable", changed(field(20, "<H", 0x7777))),
    "no-channels": Fault("unreadable", changed(field(22, "<H", 0))),
    "flac-half": Fault("unreadable", changed(lambda data: data[: len(data) // 2], noise()), ".flac"),
    "flac-middle": Fault("unreadable", changed(spoilt, noise()), ".flac"),
    "flac-magic": Fault("unreadable", changed(lambda data: b"fLaX" + data[4:]), ".flac"),
    "ogg-page": Fault("unreadable", content(b"OggS" + bytes(400)), ".ogg"),
    "mp4": Fault("unreadable", content(b"\0\0\0\x20ftypisom\0\0\2\0isomiso2avc1mp41" + bytes(400)), ".mp4"),
    "webm": Fault("unreadable", content(b"\x1a\x45\xdf\xa3" + bytes(400)), ".webm"),
    "sphere": Fault("unreadable", content(b"NIST_1A\n   1024\nsample_count -i 8000\n" + bytes(1200)), ".sph"),
    "no-samples": Fault(
        "no_audio", changed(lambda data: data[:36] + b"JUNK" + field(0, "<I", 100)(bytes(104)) + b"data" + bytes(4))
    ),
    "no-samples-wav": Fault("unreadable", sound(np.zeros((0, 2), np.float32))),
    # Audio, but not two people at a rate of speech.
    "rate-low": Fault("sample_rate", sound(tones(), 2_000)),
    "rate-high": Fault("sample_rate", sound(tones(), 500_000)),
    "mono": Fault("channels", sound(tones()[:, 0])),
    "four-channels": Fault("channels", sound(np.tile(tones(), 2))),
    "nan": Fault("not_finite", sound(with_value(np.nan), subtype="FLOAT")),
    "infinite": Fault("not_finite", sound(with_value(np.inf), subtype="FLOAT")),
    "scale-of-integers": Fault("scale", sound(20_000 * tones(), subtype="FLOAT")),
    "divided-twice": Fault("scale", sound(tones() / 32_768, subtype="FLOAT")),
    "silent": Fault("silent", sound(np.zeros_like(tones()))),
    "same-channels": Fault("same_channels", sound(noise()[:, [0, 0]])),
    "opposite-channels": Fault("same_channels", sound(noise()[:, [0, 0]] * np.float32([1, -1]))),
    "late-copy": Fault("same_channels", sound(late())),
    "swapped": Fault("swapped", sound(tones()[:, ::-1])),
    # Transcripts.
    "no-transcript": Fault("transcript", sidecar(None)),
    "empty-transcript": Fault("transcript", sidecar(b"")),
    "not-json": Fault("transcript", sidecar(b"{not json")),
    "json-half": Fault("transcript", sidecar(json.dumps({"alignments": WORDS}).encode()[:-20])),
    "json-deep": Fault("transcript", sidecar(b"[" * 100_000)),
    "latin-1": Fault("transcript", sidecar('{"alignments": [["café", [0.3, 0.6], "SPEAKER_USER"]]}'.encode("latin-1"))),
    "utf-16": Fault("transcript", sidecar(json.dumps({"alignments": WORDS}).encode("utf-16"))),
    "transcript-is-number": Fault("transcript", sidecar(b"3")),
    "no-alignments": Fault("transcript", sidecar(b'{"words": "hello there"}')),
    "null-alignments": Fault("transcript", words(None)),
    "two-elements": Fault("transcript", words([["hello", [0.3, 0.6]]])),
    "three-times": Fault("transcript", words([["hello", [0.3, 0.6, 0.9], "SPEAKER_USER"]])),
    "times-are-words": Fault("transcript", words([["hello", ["soon", "later"], "SPEAKER_USER"]])),
    "word-is-number": Fault("transcript", words([[7, [0.3, 0.6], "SPEAKER_USER"]])),
    "half-a-character": Fault("transcript", words([["\ud83d", [0.3, 0.6], "SPEAKER_USER"]])),
    "untimed": Fault("transcript", words([["hello", None, "SPEAKER_USER"], ["there", None, "SPEAKER_USER"], _ENTRY])),
    "infinite-times": Fault("transcript", words([["hello", [float("inf"), float("inf")], "SPEAKER_USER"]])),
    "after-the-end": Fault("transcript", words([*WORDS, ["late", [60.0, 60.5], "SPEAKER_USER"]])),
    "before-the-start": Fault("transcript", words([["early", [-9.0, -8.5], "SPEAKER_USER"], *WORDS])),
}


def write_good(folder: Path) -> list[str]:
    """Write the good recordings and return the names of their files: plain, at 8 kHz, FLAC, with repairable times."""
    for name, rate in (("good-1.wav", RATE), ("good-2.wav", 8_000), ("good-3.flac", RATE)):
        sound(tones(rate), rate)(folder / name)
    sound(tones())(folder / "good-4.wav")
    missing_end, reversed_end = ["hello", [0.3, None], "SPEAKER_USER"], ["yes", [1.0, 0.9], "SPEAKER_MAIN"]
    transcribe(folder / "good-4.wav", [reversed_end, missing_end, ["", [0.4, 0.5], "SPEAKER_USER"]])
    return ["good-1.wav", "good-2.wav", "good-3.flac", "good-4.wav"]


def write_manifest(folder: Path, names: list[str]) -> Path:
    path = folder / "manifest.jsonl"
    path.write_text("".join(json.dumps({"path": name}) + "\n" for name in names))
    return path


def write(folder: Path) -> Path:
    """Write all recordings into an empty folder, the good ones among the broken ones, and return the manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    good, names = write_good(folder), []
    for number, (name, fault) in enumerate(BROKEN.items()):
        fault.write(folder / f"{name}{fault.suffix}")
        names.append(f"{name}{fault.suffix}")
        if number % 15 == 7:
            names.append(good[number // 15])
    return write_manifest(folder, names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    print(f"wrote {write(parser.parse_args().folder)}: {len(BROKEN)} broken recordings and 4 good ones")


if __name__ == "__main__":
    main()

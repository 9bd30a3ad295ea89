"""What files of recordings hold, whatever their headers say.

A header may name another length than the sound has: recorders that were killed leave sizes of 0, streams have none,
sizes of 32 bits wrap at 4 GB, copies break off, and MP3 files are joined end to end. Decoders believe the header.
`examine` compares it with the file, and `source` gives decoders a file whose header names what is there.
"""

from __future__ import annotations

import functools
import io
import math
import mmap
import re
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, NamedTuple

from moshijax.errors import DataError

if TYPE_CHECKING:
    from collections.abc import Iterator

#: Lowest and highest sample rate of recordings of speech, in Hz: telephones have 8,000.
RATES = (4_000, 384_000)
#: Float recordings may go a little beyond 1; larger ones are in the scale of integers.
LOUDEST = 2.0
#: The smallest step of 16 bits: a float recording that stays below it was divided by the scale of integers twice.
QUIETEST = 2.0**-15
#: Codings, as libsndfile names them, of samples that have no largest value.
FLOATS = ("FLOAT", "DOUBLE")

_NOT_ZERO = re.compile(rb"[^\0]")
# What begins so behind the sound is no sound, even if its own sizes are wrong.
_METADATA = re.compile(rb"\0*(LIST|ID3|id3 |cue |bext|smpl|inst|fact|JUNK|PAD |iXML|axml|PEAK|DISP|cart|_PMX|afsp)")
_LEAST_REST = 4096  # bytes after the sound that are no metadata: so many of them, and not all zero, are sound


_SHORTENED = re.compile(rb"^sample_coding -s\d+ \S*embedded-shorten", re.MULTILINE)


class Unfit(DataError):
    """A recording that can be read, but not be used; `kind` names the finding."""

    def __init__(self, message: str, kind: str = "unreadable"):
        super().__init__(message)
        self.kind = kind


@dataclass(frozen=True)
class Extent:
    """How much sound a file holds.

    Attributes:
      doubtful: its header names less, or nothing; whether the file is whole, nobody knows.
      head: bytes in place of the first `start` ones, that name the length that there is; None: the header is right, or
        decoders know better.
      start: where in the file that begins what follows the head.
    """

    doubtful: bool = False
    head: bytes | None = None
    start: int = 0


def examine(path: Path) -> Extent:
    """Compare the length that the header of a recording names with what the file holds.

    Looks into WAV, RF64, W64, AIFF, CAF, AU, SPHERE, FLAC, Ogg and MP3. Damaged headers are for decoders to tell.

    Raises:
      DataError: the file cannot be read, breaks off, or holds several recordings of which decoders read the first.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _examine(path, data)
    except OSError as error:
        raise DataError(f"recording {path} cannot be read: {error.strerror}") from error
    except (ValueError, LookupError, struct.error):  # empty, or a damaged header
        return Extent()


def is_shortened(path: Path) -> bool:
    """Say whether a recording is a SPHERE file whose samples are compressed by shorten.

    Raises:
      DataError: it cannot be read.
    """
    try:
        with open(path, "rb") as file:
            head = file.read(16)
            size = int(head[8:]) if head[:7] == b"NIST_1A" and head[8:].strip().isdigit() else 0
            return _SHORTENED.search(head + file.read(size)) is not None
    except OSError as error:
        raise DataError(f"recording {path} cannot be read: {error.strerror}") from error


def source(path: Path, extent: Extent) -> str | BinaryIO:
    """Return what a decoder opens: the path, or a file whose header names the length that there is."""
    return str(path) if extent.head is None else io.BufferedReader(_Mended(path, extent.head, extent.start))


def check_rate(path: Path, rate: int) -> None:
    """Check the sample rate of a recording.

    Raises:
      Unfit: speech is not recorded at this rate.
    """
    if not RATES[0] <= rate <= RATES[1]:
        raise Unfit(
            f"recording {path} has a sample rate of {rate} Hz, {RATES[0]} to {RATES[1]} are possible: correct it",
            "sample_rate",
        )


def check_scale(path: Path, peak: float, least: float = 0.0) -> None:
    """Check the largest sample of a recording, or of a part of it.

    Args:
      path: of the recording.
      peak: its largest magnitude; anything goes if it is not finite, which is another finding.
      least: that the peak must have unless it is 0: `QUIETEST` for a whole recording of floats.

    Raises:
      Unfit: the samples are of another scale than [-1, 1].
    """
    if LOUDEST < peak < math.inf or 0 < peak < least:
        remedy = "divide" if peak > LOUDEST else "multiply"
        raise Unfit(
            f"recording {path} holds samples up to {peak:.4g}, of another scale than [-1, 1]: {remedy} them by the "
            "largest value of that scale",
            "scale",
        )


class _Mended(io.RawIOBase):
    """A file whose first bytes are replaced."""

    def __init__(self, path: Path, head: bytes, start: int):
        self._file, self._head, self._start, self._position = open(path, "rb"), head, start, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_CUR:
            offset += self._position
        elif whence == io.SEEK_END:
            offset += self._file.seek(0, io.SEEK_END) - self._start + len(self._head)
        self._position = max(0, offset)
        return self._position

    def readinto(self, buffer: memoryview) -> int:
        if self._position < len(self._head):
            found = self._head[self._position : self._position + len(buffer)]
        else:
            self._file.seek(self._position - len(self._head) + self._start)
            found = self._file.read(len(buffer))
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)

    def close(self) -> None:
        self._file.close()
        super().close()


def _examine(path: Path, data: mmap.mmap) -> Extent:
    magic, begin = data[:4], _after_tags(data, 0)
    if magic in _CHUNKS:
        return _chunked(path, data, _CHUNKS[magic])
    if magic == b".snd":
        begin, named = struct.unpack_from(">II", data, 4)
        return _sized(path, data, _Sound(begin, named, 8, ">I"), begin + named)
    if magic == b"NIST":
        return _sphere(path, data)
    if data[begin : begin + 4] == b"fLaC":
        return _flac(path, data, begin)
    if magic == b"OggS":
        return _ogg(path, data)
    return _mpeg(path, data, begin)


def _breaks_off(path: Path, held: int, named: int, unit: str) -> DataError:
    return DataError(f"recording {path} breaks off after {held} of {named} {unit}: copy it again")


def _joined(path: Path) -> DataError:
    return DataError(
        f"recording {path} is several files joined end to end, of which only the first would be read: separate them, "
        "or convert each of them to WAV before they are joined"
    )


class _Chunks(NamedTuple):
    """A container of chunks, one of which is the sound."""

    first: int  # where the first one begins
    name: int  # bytes of a name
    size: str  # format of a size
    overhead: int  # bytes that a size counts before those of the content
    align: int
    sound: bytes  # name of the sound


_CHUNKS = {
    b"RIFF": _Chunks(12, 4, "<I", 0, 2, b"data"),
    b"RIFX": _Chunks(12, 4, ">I", 0, 2, b"data"),
    b"RF64": _Chunks(12, 4, "<I", 0, 2, b"data"),
    b"FORM": _Chunks(12, 4, ">I", 0, 2, b"SSND"),
    b"caff": _Chunks(8, 4, ">q", 0, 1, b"data"),
    b"riff": _Chunks(40, 16, "<q", 24, 8, b"data\xf3\xac\xd3\x11\x8c\xd1\x00\xc0\x4f\x8e\xdb\x8a"),
}


class _Sound(NamedTuple):
    """Where the sound of a file lies, in bytes."""

    begin: int
    named: int  # its size
    field: int  # where this is written
    format: str  # and how
    overhead: int = 0  # that is added there


def _walk(data: mmap.mmap, kind: _Chunks, start: int) -> Iterator[tuple[bytes, _Sound]]:
    """Yield name and place of the chunks from `start` on, as long as there are any."""
    while start + kind.name < len(data) and re.fullmatch(rb"[ -~]{4}", data[start : start + 4]):
        field = start + kind.name
        (size,) = struct.unpack_from(kind.size, data, field)
        begin = field + struct.calcsize(kind.size)
        yield data[start:field], _Sound(begin, size - kind.overhead, field, kind.size, kind.overhead)
        if size < kind.overhead:
            return
        start = begin + size - kind.overhead
        start += -start % kind.align


def _chunked(path: Path, data: mmap.mmap, kind: _Chunks) -> Extent:
    size64, sound = None, None
    for name, chunk in _walk(data, kind, kind.first):
        if name == b"ds64":
            size64 = _Sound(0, struct.unpack_from("<Q", data, chunk.begin + 8)[0], chunk.begin + 8, "<Q")
        if name == kind.sound:
            sound = chunk if size64 is None else size64._replace(begin=chunk.begin)
            break
    if sound is None:
        return Extent()
    end = sound.begin + max(0, sound.named)
    for start in (end + -end % kind.align, end):  # not everybody aligns them
        for _, chunk in _walk(data, kind, start):
            after = chunk.begin + chunk.named
            if chunk.named < 0 or after > len(data):
                break
            end = max(end, after)
    if _METADATA.match(data, end):
        end = len(data)
    extent = _sized(path, data, sound, end)
    if data[:4] == b"RIFF":  # whose size some readers believe too
        (whole,) = struct.unpack_from("<I", data, 4)
        if extent.head is not None or whole + 8 < sound.begin + sound.named:
            head = extent.head or data[: sound.begin]
            size = struct.pack("<I", min(len(data) - 8, 2**32 - 1))
            return Extent(extent.doubtful, head[:4] + size + head[8:], sound.begin)
    return extent


def _sized(path: Path, data: mmap.mmap, sound: _Sound, end: int) -> Extent:
    """Judge a size in bytes; `end` is where everything ends that the header and others name."""
    held, named = len(data) - sound.begin, sound.named
    unknown = named < 0 or named > held and named % 2**31 >= 2**31 - 2**16  # what writers of streams put there
    if named > held and not unknown:
        raise _breaks_off(path, held, named, "bytes of sound")
    if data[:4] == data[sound.begin + named : sound.begin + named + 4]:
        raise _joined(path)
    if not unknown and (len(data) - end < _LEAST_REST or _NOT_ZERO.search(data, end) is None):
        return Extent()
    size = struct.calcsize(sound.format)
    most = 2 ** (8 * size - sound.format.endswith("q")) - 1
    mended = struct.pack(sound.format, min(held + sound.overhead, most))
    return Extent(True, data[: sound.field] + mended + data[sound.field + size : sound.begin], sound.begin)


def _sphere(path: Path, data: mmap.mmap) -> Extent:
    header = data[: int(data[8:16])].decode("latin-1")
    numbers = {name: int(n) for name, n in re.findall(r"^(\w+) -i (\d+)$", header, re.MULTILINE)}
    if _SHORTENED.search(data[: len(header)]):
        raise DataError(
            f"recording {path} is compressed by shorten inside SPHERE: unpack it, with `sph2wav` (pip install "
            "'moshijax[sphere]') or `sph2pipe -p -f wav`"
        )
    named = numbers["sample_count"] * numbers["channel_count"] * numbers.get("sample_n_bytes", 1)
    held = len(data) - len(header)
    if data[:4] == data[len(header) + named : len(header) + named + 4]:
        raise _joined(path)
    if named > held:
        raise _breaks_off(path, held, named, "bytes of sound")
    return Extent(doubtful=held - named >= _LEAST_REST)  # decoders read to the end


def _flac(path: Path, data: mmap.mmap, begin: int) -> Extent:
    if re.compile(rb"fLaC[\x00\x80]\0\0\x22").search(data, begin + 4) is not None:
        raise _joined(path)
    place = begin + 18  # of 64 bits, of which the last 36 are the number of samples
    (packed,) = struct.unpack_from(">Q", data, place)
    named, held = packed % 2**36, _flac_samples(data, begin)
    if held is None or held == named:
        return Extent()
    if held < named:
        raise _breaks_off(path, held, named, "samples")
    return Extent(True, data[:place] + struct.pack(">Q", packed - named + held), place + 8)


def _flac_samples(data: mmap.mmap, begin: int) -> int | None:
    """Where the last frame ends; None if none is found."""
    (block,) = struct.unpack_from(">H", data, begin + 10)
    size = 2**18
    while True:
        first = max(begin, len(data) - size)
        places = (match.start() for match in re.compile(rb"\xff[\xf8\xf9]").finditer(data, first))
        frames = [frame for place in places if (frame := _flac_frame(data[place : place + 16], block)) is not None]
        for n in range(len(frames) - 1, 0, -1):  # sound may look like a frame: one counts that continues another
            if any(frames[n][0] == start + samples for start, samples in frames[:n]):
                return sum(frames[n])
        if first == begin:
            return sum(frames[0]) if frames and frames[0][0] == 0 else None
        size *= 8


def _flac_frame(head: bytes, block: int) -> tuple[int, int] | None:
    """Return number of the first sample, and of samples; None if this is no frame."""
    try:
        size, rate = divmod(head[2], 16)
        if size == 0 or rate == 15 or head[3] >> 4 > 10 or head[3] & 1:
            return None
        more = max(0, 7 - (head[4] ^ 0xFF).bit_length())  # bytes after the first one, as in UTF-8
        number = head[4] & (0x7F if more == 0 else 0x3F >> more)
        for byte in head[5 : 5 + more]:
            number = number << 6 | byte & 0x3F
        place = 5 + more
        if size == 1:
            samples = 192
        elif size < 6:
            samples = 576 << size - 2
        elif size < 8:
            samples = int.from_bytes(head[place : place + size - 5], "big") + 1
            place += size - 5
        else:
            samples = 256 << size - 8
        place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
        return (number if head[1] & 1 else number * block, samples) if _crc8(head[:place]) == head[place] else None
    except IndexError:  # the file breaks off
        return None


def _crc8(data: bytes) -> int:
    crc = 0
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = (crc << 1 ^ 0x107) if crc & 0x80 else crc << 1
    return crc


def _ogg(path: Path, data: mmap.mmap) -> Extent:
    place, flags, sounds = 0, 0, False
    while (place := data.find(b"OggS", place)) >= 0:
        head = data[place : place + 27]
        segments = data[place + 27 : place + 27 + head[-1]]
        place += 27 + len(segments) + sum(segments)
        if len(head) < 27 or place > len(data):
            return Extent(doubtful=True)
        flags = head[5]
        if flags & 2 and sounds:
            raise _joined(path)
        sounds = not flags & 2  # streams that are interleaved begin together
    return Extent(doubtful=not flags & 4)


# Of MPEG audio: kbit/s by version (1, then 2 and 2.5) of layer 3; Hz of version 1.
_MPEG_KBPS = (
    (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
)
_MPEG_HZ = (44_100, 48_000, 32_000)
_MPEG_ROOM = 9  # in a row of _MPEG_KBPS: a frame with room for a length


@functools.lru_cache(maxsize=1024)
def _mpeg_size(second: int, third: int) -> int:
    """Bytes of a frame of layer 3, by two bytes of its header; 0 if they are of none."""
    version, layer = second >> 3 & 3, second >> 1 & 3
    kbps, hz = third >> 4, third >> 2 & 3
    if second < 0xE0 or version == 1 or layer != 1 or kbps in (0, 15) or hz == 3:
        return 0
    rate = _MPEG_HZ[hz] >> (0 if version == 3 else 1 if version == 2 else 2)
    return (144 if version == 3 else 72) * 1000 * _MPEG_KBPS[version != 3][kbps] // rate + (third >> 1 & 1)


def _after_tags(data: mmap.mmap, place: int) -> int:
    """Return where tags end that begin at a place."""
    while True:
        if data[place : place + 3] == b"ID3":
            a, b, c, d = data[place + 6 : place + 10]
            place += 10 + (a << 21 | b << 14 | c << 7 | d) + 10 * (data[place + 5] >> 4 & 1)
        elif data[place : place + 3] == b"TAG":
            place += 128
        elif data[place : place + 8] == b"APETAGEX":
            place += 32 + struct.unpack_from("<I", data, place + 12)[0]
        else:
            return place


def _mpeg(path: Path, data: mmap.mmap, begin: int) -> Extent:
    second, third, fourth = data[begin + 1 : begin + 4]
    size = _mpeg_size(second, third) if data[begin] == 0xFF else 0
    if not size:
        return Extent()
    old, mono = second >> 3 & 3 != 3, fourth >> 6 == 3
    samples = 576 if old else 1152
    side = (9 if mono else 17) if old else (17 if mono else 32)
    # The first frame may hold the number of the others: as decoders know it, or in a form that they do not.
    head = data[begin : begin + size]
    xing, vbri = head[4 + side : 8 + side] in (b"Xing", b"Info"), head[36:40] == b"VBRI"
    named = None
    if vbri:
        (named,) = struct.unpack_from(">I", head, 50)
    elif xing and head[11 + side] & 1:
        (named,) = struct.unpack_from(">I", head, 12 + side)
    first = begin + size if xing or vbri else begin
    held, rates = _mpeg_frames(data, first, second, third)
    if named is not None and held < named - 1:  # some count the first frame too
        raise _breaks_off(path, held * samples, named * samples, "samples")
    # Without a number decoders take the bit rate of the first frame for that of all.
    if rates == 1 if vbri or named is None else held <= named:
        return Extent()
    third = _MPEG_ROOM << 4 | third & 0x0C
    frame = bytes([0xFF, second | 1, third, fourth]) + bytes(side) + struct.pack(">4sII", b"Xing", 1, held)
    return Extent(True, frame.ljust(_mpeg_size(second, third), b"\0"), first)


def _mpeg_frames(data: mmap.mmap, place: int, second: int, third: int) -> tuple[int, int]:
    """Return the numbers of frames from a place on, and of different bit rates."""

    def size_at(place: int) -> int:
        if place + 4 > len(data) or data[place] != 0xFF:
            return 0
        alike = data[place + 1] | 1 == second | 1 and data[place + 2] & 0x0C == third & 0x0C
        size = _mpeg_size(data[place + 1], data[place + 2]) if alike else 0
        return size if place + size <= len(data) else 0

    count, rates = 0, set()
    while place >= 0:
        if size := size_at(place):
            count += 1
            rates.add(data[place + 2] >> 4)
            place += size
        elif (after := _after_tags(data, place)) > place:
            place = after
        else:  # damage, or something else: a frame counts if another one follows
            while (place := data.find(b"\xff", place + 1)) >= 0:
                after = place + size_at(place)
                if after > place and (after == len(data) or size_at(after)):
                    break
    return count, len(rates)

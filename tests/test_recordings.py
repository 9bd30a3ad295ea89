"""Headers that name another length than the file holds: all of the sound is read, or the file is rejected by name."""

from __future__ import annotations

import re
import struct

import numpy as np
import pytest
import soundfile

from moshijax import recordings
from moshijax.data import audio
from moshijax.errors import DataError
from moshijax.runtime import audio as runtime_audio

RATE = 24_000
SECONDS = 4


def speech(loud=slice(0, 0)):
    """Quiet tones with loud noise in a part, so that bit rates vary."""
    time = np.arange(SECONDS * RATE) / RATE
    signal = np.stack([0.2 * np.sin(2 * np.pi * hz * time) for hz in (300, 440)], 1)
    signal[loud] = 0.2 * np.random.default_rng(0).normal(size=signal[loud].shape)
    return signal


def write(path, form, subtype, signal=None, **how):
    soundfile.write(path, speech() if signal is None else signal, RATE, format=form, subtype=subtype, **how)
    return path.read_bytes()


def check_whole(path, want, doubtful, tolerance=0.0):
    """All that is there is found by every reader: whole, by windows, and by `moshijax run`."""
    info = audio.probe(path)
    assert (info.num_samples, info.extent.doubtful) == (len(want), doubtful)
    found = audio.read(path, RATE)
    np.testing.assert_allclose(found, want, atol=tolerance + 2**-15)
    for start in (0.5, SECONDS - 0.5, len(want) / RATE - 0.25):
        first = round(start * RATE)
        window = audio.read_window(path, start, RATE // 4, RATE, 1, info.extent)
        np.testing.assert_allclose(window, found[first : first + RATE // 4, 1], atol=1e-5)
    np.testing.assert_array_equal(runtime_audio.read(path)[0], found)


def check_refused(path, message):
    for reader in (audio.probe, lambda path: audio.read(path, RATE), runtime_audio.read):
        with pytest.raises(DataError, match=f"^recording {re.escape(str(path))} {message}"):
            reader(path)


CONTAINERS = {
    "wav": ("WAV", "PCM_16"), "float.wav": ("WAV", "FLOAT"), "wave": ("WAVEX", "PCM_24"), "rf64": ("RF64", "PCM_16"),
    "w64": ("W64", "PCM_16"), "aiff": ("AIFF", "PCM_16"), "au": ("AU", "PCM_16"), "caf": ("CAF", "PCM_16"),
    "sph": ("NIST", "PCM_16"), "flac": ("FLAC", "PCM_16"), "ogg": ("OGG", "VORBIS"), "opus": ("OGG", "OPUS"),
    "mp3": ("MP3", "MPEG_LAYER_III"),
}  # fmt: skip


@pytest.mark.parametrize("suffix", CONTAINERS)
def test_whole_files_are_not_doubted_and_cut_and_joined_ones_never_pass_for_whole(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    content = write(path, *CONTAINERS[suffix])
    assert audio.probe(path).num_samples == SECONDS * RATE
    assert recordings.examine(path) == recordings.Extent()
    path.write_bytes(content + bytes(6000))  # padding, and a tag of another program
    assert recordings.examine(path).doubtful == (suffix == "sph")
    path.write_bytes(content[: len(content) // 2])
    if suffix in ("ogg", "opus"):  # whose length is written nowhere
        assert audio.probe(path).extent.doubtful and audio.probe(path).num_samples < 0.6 * SECONDS * RATE
    else:
        check_refused(path, r"breaks off after (\d+) of (\d+) (bytes of sound|samples): copy it again$")
    path.write_bytes(2 * content)
    if suffix == "mp3":
        assert 2 * SECONDS * RATE <= audio.probe(path).num_samples < 2 * SECONDS * RATE + 4 * 1152
        check_whole(path, audio.read(path, RATE), doubtful=True)
    else:
        check_refused(path, "is several files joined end to end, of which only the first would be read")


@pytest.mark.parametrize("size", [0, 0xFFFFFFFF, 0xFFFFFFFF - 8, 0x7FFFFFFF, 0x7FFFFFFF - 36, 0x7FFFF000, 9600, 4])
@pytest.mark.parametrize("subtype", ["PCM_16", "FLOAT"])
def test_sizes_that_are_no_sizes(tmp_path, size, subtype):
    """Of streams, of recorders that were killed before they wrote one or since, and of files over 4 GB."""
    path = tmp_path / "a.wav"
    content = bytearray(write(path, "WAV", subtype))
    place = content.index(b"data") + 4
    content[place : place + 4] = struct.pack("<I", size)
    content[4:8] = struct.pack("<I", (size + place - 4) % 2**32)
    path.write_bytes(content)
    check_whole(path, speech(), doubtful=True)
    struct.pack_into("<I", content, place, len(content) - place - 4)  # the file's own size alone is wrong
    path.write_bytes(content)
    check_whole(path, speech(), doubtful=False)


def test_sizes_of_other_containers(tmp_path):
    for suffix, mark, skip, form in (
        ("aiff", b"SSND", 4, ">I"), ("caf", b"data", 4, ">q"), ("au", b".snd", 8, ">I"), ("w64", b"data\xf3", 16, "<q"),
    ):  # fmt: skip
        path = tmp_path / f"a.{suffix}"
        content = bytearray(write(path, *CONTAINERS[suffix]))
        place = content.index(mark) + skip
        for size in (9600, -1 if form[1] == "q" else 0xFFFFFFFF):
            struct.pack_into(form, content, place, size)
            path.write_bytes(content)
            check_whole(path, speech(), doubtful=True)


def test_metadata_after_the_sound_is_no_sound(tmp_path):
    path = tmp_path / "a.wav"
    content = write(path, "WAV", "PCM_16")
    note = bytes(range(1, 251)) * 40
    for after in (
        b"LIST" + struct.pack("<I", len(note)) + note,
        b"id3 " + struct.pack("<I", len(note)) + note,
        note[:200],
    ):
        path.write_bytes(content + after)
        check_whole(path, speech(), doubtful=False)
    empty = write(path, "WAV", "PCM_16", np.zeros((0, 2)))
    path.write_bytes(empty + b"LIST" + struct.pack("<I", len(note)) + note)
    assert audio.probe(path).num_samples == 0


@pytest.mark.parametrize(
    "tail",
    [
        b"cue " + struct.pack("<I", 5) + bytes(5) + b"LIST" + struct.pack("<I", 8000) + b"x" * 8000,
        b"LIST" + struct.pack("<I", 9000) + b"x" * 8000,
        b"ID3\4\0\0" + b"x" * 8000,
        bytes(512) + b"LIST" + struct.pack("<I", 8000) + b"x" * 8000,
    ],
    ids=["after a chunk of odd size", "cut", "id3", "after zeros"],
)
def test_damaged_metadata_after_the_sound_is_no_sound(tmp_path, tail):
    path = tmp_path / "a.wav"
    path.write_bytes(write(path, "WAV", "PCM_16") + tail)
    check_whole(path, speech(), doubtful=False)


def with_flac_length(content, samples):
    """A FLAC file whose header names another length: 36 bits, which end with the 26th byte."""
    (packed,) = struct.unpack_from(">Q", content, 18)
    return content[:18] + struct.pack(">Q", packed - packed % 2**36 + samples) + content[26:]


@pytest.mark.parametrize("frames", [127, 129, 2049])
def test_flac_frames_of_any_number_are_found(tmp_path, frames):
    """The number of a frame takes a second byte from 128 on, a third one from 2048 on."""
    noise = np.zeros((frames * 4096 + 100, 1), np.float32)
    noise[-80_000:] = 0.1 * np.random.default_rng(frames).normal(size=(80_000, 1))
    path = tmp_path / "a.flac"
    content = write(path, "FLAC", "PCM_16", noise)
    assert recordings.examine(path) == recordings.Extent()
    path.write_bytes(with_flac_length(content, 0))
    assert audio.probe(path).num_samples == len(noise)
    path.write_bytes(content[: -len(content) // 3])
    with pytest.raises(DataError, match="breaks off after .* of .* samples"):
        recordings.examine(path)


def test_flac_headers(tmp_path):
    path = tmp_path / "a.flac"
    content = write(path, "FLAC", "PCM_16")
    for named in (0, 1, RATE, SECONDS * RATE - 1):
        path.write_bytes(with_flac_length(content, named))
        check_whole(path, speech(), doubtful=True)
    path.write_bytes(with_flac_length(content, 10 * RATE))
    check_refused(path, f"breaks off after {SECONDS * RATE} of {10 * RATE} samples")
    short = write(path, "FLAC", "PCM_16", speech()[:100])  # a single frame
    path.write_bytes(with_flac_length(short, 0))
    assert audio.probe(path).num_samples == 100


def without_first_frame(content):
    """An MP3 without the frame that holds its length."""
    return content[content.index(content[:2], 4) :]


def id3(size):
    return b"ID3\3\0\0" + bytes([size >> 21, size >> 14 & 127, size >> 7 & 127, size & 127]) + bytes(size)


@pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 44_100])
@pytest.mark.parametrize("channels", [1, 2])
def test_mp3_of_variable_bit_rate_without_a_length(tmp_path, rate, channels):
    half = SECONDS * RATE // 2
    path = tmp_path / "a.mp3"
    for loud in (slice(0, half), slice(half, None)):  # the estimate is too small, or too large
        signal = speech(loud)[:, :channels]
        soundfile.write(path, signal, rate, format="MP3", subtype="MPEG_LAYER_III", bitrate_mode="VARIABLE",
                        compression_level=0.5)  # fmt: skip
        content = path.read_bytes()
        assert audio.probe(path).num_samples == len(signal) and not audio.probe(path).extent.doubtful
        whole = audio.read(path, rate, tuple(range(channels)))
        tags = id3(3000)
        for bare in (without_first_frame(content), tags + without_first_frame(content) + b"TAG" + bytes(125)):
            path.write_bytes(bare)
            info = audio.probe(path)
            assert info.extent.doubtful and len(signal) <= info.num_samples <= len(signal) + 4 * 1152
            found = audio.read(path, rate, tuple(range(channels)))
            assert len(found) == info.num_samples
            # What the encoder put before the sound comes first, and then it is the same to the end.
            place = loud.start or 0
            part = whole[place + 1000 : place + 3000, 0]
            delay = int(np.correlate(found[place + 1000 : place + 3000 + 4 * 1152, 0], part, "valid").argmax())
            np.testing.assert_allclose(found[delay + 2000 : delay + len(whole)], whole[2000:], atol=1e-3)
            window = audio.read_window(path, 3.0 * RATE / rate, 2000, rate, 0, info.extent)
            first = round(3.0 * RATE)
            np.testing.assert_allclose(window, found[first : first + 2000, 0], atol=1e-4)


def test_mp3_of_constant_bit_rate_and_damaged_ones(tmp_path):
    path = tmp_path / "a.mp3"
    content = write(path, "MP3", "MPEG_LAYER_III", bitrate_mode="CONSTANT", compression_level=0.5)
    path.write_bytes(without_first_frame(content))
    assert recordings.examine(path) == recordings.Extent()  # decoders divide its size by the bit rate
    assert audio.read(path, RATE).shape[0] == audio.probe(path).num_samples
    tagged = content + id3(2000) + content + b"APETAGEX" + struct.pack("<II", 2000, 3000) + bytes(3016)
    path.write_bytes(tagged)
    assert 2 * SECONDS * RATE <= len(audio.read(path, RATE)) <= 2 * SECONDS * RATE + 4 * 1152
    damaged = bytearray(content)
    damaged[len(content) // 2 : len(content) // 2 + 4096] = np.random.default_rng(0).bytes(4096)
    path.write_bytes(damaged)
    check_refused(path, "breaks off after")


def test_rates_and_scales(tmp_path):
    path = tmp_path / "a.wav"
    content = bytearray(write(path, "WAV", "PCM_16"))
    for rate in (1, 8, 24, 100, 3_999, 384_001, 2**31 - 1):
        struct.pack_into("<I", content, 24, rate)
        path.write_bytes(content)
        check_refused(path, f"has a sample rate of {rate} Hz, 4000 to 384000 are possible: correct it")
    for scale, remedy in ((32767, "divide"), (8, None), (1 / 32768, "multiply")):
        write(path, "WAV", "FLOAT", speech() * scale)
        if remedy is None:
            assert np.abs(audio.read(path, RATE)).max() < 2
            continue
        for reader in (lambda path: audio.read(path, RATE), runtime_audio.read):
            with pytest.raises(DataError, match=rf"holds samples up to .*, of another scale than \[-1, 1\]: {remedy}"):
                reader(path)
    write(path, "WAV", "FLOAT", np.zeros((RATE, 2)))
    assert not audio.read(path, RATE).any() and not runtime_audio.read(path)[0].any()
    path.unlink()
    path.mkdir()
    with pytest.raises(DataError, match=r"a\.wav cannot be read: Is a directory"):
        audio.probe(path)

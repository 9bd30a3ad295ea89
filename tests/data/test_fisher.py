"""Telephone speech in SPHERE files, compressed ones too, and the Fisher corpus, to recordings with utterances.

The files are made here in the form of the corpus; real ones were not at hand.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
import soundfile

from moshijax.data import audio
from moshijax.data.fisher import REPORT, convert
from moshijax.data.known_text import passages
from moshijax.data.manifest import read_manifest
from moshijax.errors import DataError

RATE = 8000
TABLE = "CALL_ID,DATE_TIME,TOPICID,SIG_GRADE,CNV_GRADE,APIN,ASX.DL,APHNUM,BPIN,BSX.DL,BPHNUM\n"


def header(samples, coding="ulaw", size=1, channels=2):
    fields = [
        "conversation_id -s5 00001", f"sample_count -i {samples}", f"sample_n_bytes -i {size}",
        f"channel_count -i {channels}", f"sample_rate -i {RATE}", f"sample_coding -s{len(coding)} {coding}",
        *(["sample_byte_format -s2 01"] if size == 2 else []), "end_head", "",
    ]  # fmt: skip
    return ("NIST_1A\n   1024\n" + "\n".join(fields)).encode().ljust(1024)


def tones(seconds=2.0):
    """Two channels of 16 bits, with a pause."""
    time = np.arange(round(seconds * RATE) // 256 * 256) / RATE
    signal = np.stack([0.3 * np.sin(2 * np.pi * hz * time) for hz in (300, 440)], 1) * (np.sin(time * 5) > 0)[:, None]
    return np.round(signal * 32767).astype(np.int16)


def mu_law(signal):
    """Bytes of G.711, by libsndfile."""
    import io

    file = io.BytesIO()
    soundfile.write(file, signal, RATE, format="RAW", subtype="ULAW")
    return file.getvalue()


def shorten(signal):
    """Compress 16 bits losslessly: blocks of 256 first differences in Rice codes, as in CUED/F-INFENG/TR.156."""
    bits: list[str] = []

    def uvar(value, width):
        bits.append("0" * (value >> width) + "1" + (format(value & (1 << width) - 1, f"0{width}b") if width else ""))

    def ulong(value):
        uvar(value.bit_length(), 2)
        uvar(value, value.bit_length())

    for value in (5, signal.shape[1], 256, 0, 0, 0):  # type, channels, block, predictor, means, bytes to skip
        ulong(value)
    before = [0] * signal.shape[1]
    for start in range(0, len(signal), 256):
        for channel in range(signal.shape[1]):
            block = signal[start : start + 256, channel].astype(int)
            residuals = np.diff(block, prepend=before[channel])
            before[channel] = int(block[-1])
            width = max(1, int(np.abs(residuals).mean()).bit_length())
            uvar(1, 2)
            uvar(width - 1, 3)
            for value in residuals:
                uvar(2 * int(value) if value >= 0 else -2 * int(value) - 1, width)
    uvar(4, 2)
    text = "".join(bits)
    return b"ajkg\x02" + int(text.ljust(-(-len(text) // 32) * 32, "0"), 2).to_bytes(-(-len(text) // 32) * 4, "big")


def corpus(folder, numbers=("00001", "00002"), table=True):
    calls, texts = folder / "LDC2004S13" / "audio" / "000", folder / "LDC2004T19" / "data" / "trans" / "000"
    calls.mkdir(parents=True), texts.mkdir(parents=True)
    signal = tones()
    for number in numbers:
        (calls / f"fe_03_{number}.sph").write_bytes(header(len(signal)) + mu_law(signal))
        (texts / f"fe_03_{number}.txt").write_text(
            f"# fe_03_{number}.sph\n# Transcribed at the LDC\n\n0.10 0.80 A: hi (( good )) morning [noise]\n\n"
            "0.70 1.40 B: [laughter]\n\n1.20 1.90 B: hello\n"
        )
    if table:
        rows = "".join(f"{number},20021203_22:41:22,ENG01,3,4,1234,f.a,x,99,m.o,y\n" for number in numbers)
        (texts.parents[2] / "fe_03_p1_calldata.tbl").write_text(TABLE + rows)
    return folder / "LDC2004S13", folder / "LDC2004T19"


def test_both_channels_utterances_and_speakers_of_every_call_are_kept(tmp_path):
    calls, texts = corpus(tmp_path)
    report = convert(calls, texts, tmp_path / "out")
    assert report.usable == 2 and not report.flags
    manifest = read_manifest(tmp_path / "out")
    assert [item.id for item in manifest.items] == ["fe_03_00001", "fe_03_00002"]
    line = json.loads((tmp_path / "out" / "manifest.jsonl").read_text().splitlines()[0])
    assert line["speakers"] == [
        {"pin": "1234", "sex": "f", "dialect": "a"}, {"pin": "99", "sex": "m", "dialect": "o"},
    ]  # fmt: skip
    assert all(item.both_sides for item in manifest.items)
    info = audio.probe(manifest.items[0].audio)
    assert (info.sample_rate, info.channels, info.format) == (8000, 2, "WAV ULAW")
    before = audio.read(next(calls.rglob("*1.sph")), RATE)
    np.testing.assert_array_equal(audio.read(manifest.items[0].audio, RATE), before)
    assert np.abs(before - tones() / 32768).max() < 0.01
    assert (tmp_path / "out" / "fe_03_00001.stm").read_text().splitlines() == [
        "fe_03_00001 A 1234 0.10 0.80 <o,f> hi (( good )) morning [noise]", "fe_03_00001 B 99 1.20 1.90 <o,m> hello",
    ]  # fmt: skip
    assert passages(manifest.items[0], 0, False)[0].words == ("hi", "good", "morning")
    assert passages(manifest.items[0], 1, False)[0].words == ("hello",)
    wav = (tmp_path / "out" / "fe_03_00001.wav").stat().st_mtime_ns
    (tmp_path / "out" / "fe_03_00002.wav").unlink()
    again = convert(calls, texts, tmp_path / "out")
    assert again.to_json() == report.to_json() and (tmp_path / "out" / "fe_03_00001.wav").stat().st_mtime_ns == wav
    assert json.loads((tmp_path / "out" / REPORT).read_text())["report"]["usable"] == 2


def test_calls_that_cannot_be_used_are_rejected_by_a_reason_and_the_rest_is_as_without_them(tmp_path):
    calls, texts = corpus(tmp_path / "good", ["00001"], table=False)
    convert(calls, texts, tmp_path / "alone")
    calls, texts = corpus(tmp_path / "all", [f"0000{n}" for n in range(1, 9)], table=False)
    sph = {path.stem[-1]: path for path in calls.rglob("*.sph")}
    txt = {path.stem[-1]: path for path in texts.rglob("*.txt")}
    sph["2"].write_bytes(sph["2"].read_bytes()[:-5000])
    sph["3"].write_bytes(b"NIST_1A\n   1024\nend_head\n".ljust(2000))
    txt["4"].unlink()
    txt["5"].write_text("0.10 0.80 A: hi\n0.10 A: no end\n")
    txt["6"].write_text("0.10 9.80 A: of another call\n")
    txt["7"].write_text("0.80 0.10 A: backwards\n")
    mono = tones()[:, :1]
    sph["8"].write_bytes(header(len(mono), channels=1) + mu_law(mono))
    report = convert(calls, texts, tmp_path / "out", max_rejected=1.0)
    assert report.usable == 1 and dict(report.kinds) == {"unreadable": 2, "transcript": 4, "channels": 1}
    reasons = dict(report.rejected)
    assert "breaks off after" in reasons["00002"] and "fe_03_00002.sph" in reasons["00002"]
    assert "has no transcript fe_03_00004.txt" in reasons["00004"]
    assert "line 2: '0.10 A: no end' is not" in reasons["00005"] and "ends after the call" in reasons["00006"]
    assert "line 1" in reasons["00007"] and "1 channels" in reasons["00008"]
    for name in ("fe_03_00001.wav", "fe_03_00001.stm", "manifest.jsonl"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()
    (texts / "calldata.tbl").write_text("CALL_ID,APIN\n")
    with pytest.raises(DataError, match="has no column ASX.DL, BPIN, BSX.DL"):
        convert(calls, texts, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no fe_03_\*.sph"):
        convert(texts, texts, tmp_path / "out")
    with pytest.raises(DataError, match=r"holds no fe_03_\*.txt: name the folder with the transcripts"):
        convert(calls, tmp_path / "nowhere", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    sph["1"].with_name("more").mkdir()
    sph["1"].with_name("more").joinpath(sph["1"].name).write_bytes(sph["1"].read_bytes())
    with pytest.raises(DataError, match="are both call 00001"):
        convert(calls, texts, tmp_path / "out")


def test_shorten_is_unpacked_and_named_where_it_is_not(tmp_path):
    pytest.importorskip("desphere")
    calls, texts = corpus(tmp_path, ["00001", "00002"])
    signal = tones()
    sph = sorted(calls.rglob("*.sph"))
    packed = header(len(signal), "pcm,embedded-shorten-v2.00", 2) + shorten(signal)
    assert len(packed) < 3 * signal.size / 2
    sph[0].write_bytes(packed)
    sph[1].write_bytes(packed[: len(packed) // 2])
    with pytest.raises(DataError, match="compressed by shorten inside SPHERE: unpack it, with `sph2wav`"):
        audio.probe(sph[0])
    report = convert(calls, texts, tmp_path / "out", max_rejected=0.5)
    found, rate = soundfile.read(tmp_path / "out" / "fe_03_00001.wav", dtype="int16")
    np.testing.assert_array_equal(found, signal)
    assert rate == RATE and dict(report.kinds) == {"unreadable": 1} and "cannot be unpacked" in report.rejected[0][1]


@pytest.mark.parametrize("coding", ["ulaw", "mu-law", "pcm", ""])
def test_codings_of_sphere_are_read(tmp_path, coding):
    signal = tones()
    content = signal.astype("<i2").tobytes() if coding in ("pcm", "") else mu_law(signal)
    head = header(len(signal), coding or "pcm", 2 if coding in ("pcm", "") else 1)
    if not coding:
        head = b"\n".join(line for line in head.split(b"\n") if b"coding" not in line).ljust(1024)
    (tmp_path / "a.sph").write_bytes(head + content)
    assert audio.probe(tmp_path / "a.sph").num_samples == len(signal)
    np.testing.assert_allclose(audio.read(tmp_path / "a.sph", RATE), signal / 32768, atol=0.01)
    (tmp_path / "a.sph").write_bytes(head + content[:-10])
    with pytest.raises(DataError, match="breaks off"):
        audio.probe(tmp_path / "a.sph")

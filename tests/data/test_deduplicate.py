"""Copies are found whatever was done to them, different speech is none, and a job resumes with the same bytes."""

from __future__ import annotations

import io
import json
import os
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr

from moshijax.data import fingerprint
from moshijax.data.deduplicate import deduplicate
from moshijax.data.manifest import read_recordings
from moshijax.data.repeats import RepeatRules, find_repeats
from moshijax.errors import ConfigError, DataError
from tests.data.sets import endanger

SPEECH = os.environ.get("SPEECH_CLIPS")  # a folder of recordings, each of another text
RATE = 24_000


@cache
def babble(seed: int, seconds: float) -> np.ndarray:
    """Syllables of changing pitch and length, at `RATE`: what has the time structure of speech, and never repeats."""
    rng, parts, length = np.random.default_rng(seed), [], 0
    harmonics = np.arange(1, 17)[:, None]
    while length < seconds * RATE:
        size = int(RATE * rng.uniform(0.08, 0.3))
        pitch = rng.uniform(90, 250) * (1 + 0.3 * rng.uniform(-1, 1) * np.arange(size) / RATE)
        weights = sum(np.exp(-(((harmonics * pitch.mean() - f) / 150) ** 2)) for f in rng.uniform(250, 2500, 3))
        tone = (weights * np.sin(2 * np.pi * harmonics * np.cumsum(pitch) / RATE)).sum(axis=0)
        parts += [tone * np.hanning(size) * rng.uniform(0.3, 1), np.zeros(int(RATE * rng.uniform(0, 0.1)))]
        length += sum(map(len, parts[-2:]))
    sound = np.concatenate(parts)[: round(seconds * RATE)]
    return (0.3 * sound / np.abs(sound).max()).astype(np.float32)


def coded(sound: np.ndarray, rate: int = RATE, **how) -> np.ndarray:
    """Through a codec and back."""
    buffer = io.BytesIO()
    soundfile.write(buffer, soxr.resample(sound, RATE, rate), rate, **how)
    buffer.seek(0)
    return soxr.resample(soundfile.read(buffer, dtype="float32")[0], rate, RATE)


COPIES = {
    "same": lambda x: x,
    "quieter": lambda x: x * 0.05,
    "late by a third of a second": lambda x: np.concatenate([np.zeros(7992, np.float32), x]),
    "late by half a frame": lambda x: np.concatenate([np.zeros(300, np.float32), x]),
    "late by a quarter of a frame": lambda x: np.concatenate([np.zeros(150, np.float32), x]),
    "without its begin": lambda x: x[11_111:],
    "MP3": lambda x: coded(x, format="MP3", subtype="MPEG_LAYER_III", compression_level=0.99),
    "Opus": lambda x: coded(x, format="OGG", subtype="OPUS", compression_level=0.99),
    "telephone": lambda x: coded(x, 8000, format="WAV", subtype="ULAW"),
    "noise": lambda x: x + 0.1 * x.std() * np.random.default_rng(0).standard_normal(len(x)).astype(np.float32),
}


def printed(sound: np.ndarray) -> tuple[int, np.ndarray, np.ndarray]:
    return fingerprint.fingerprint([soxr.resample(sound, RATE, 8000)[:, None]])


def found_in(sounds: list[np.ndarray]) -> list:
    return find_repeats(*zip(*map(printed, sounds), strict=True), RepeatRules())


def test_every_copy_of_a_stretch_is_found_and_nothing_else():
    first, others = babble(0, 12.0), [babble(seed, 12.0) for seed in range(1, 4)]
    found = found_in([first, *others, *(change(first) for change in COPIES.values())])
    assert [one.repeats for one in found[: len(others) + 1]] == [()] * (len(others) + 1)
    for name, one in zip(COPIES, found[len(others) + 1 :], strict=True):
        assert not one.kept and {repeat.of for repeat in one.repeats} == {0}, name
        # A coder at its lowest quality may hide a stretch; level and start hide none.
        assert one.share == 1 or name in ("MP3", "Opus", "telephone", "noise"), name
    late = found[1 + len(others) + list(COPIES).index("late by a third of a second")].repeats
    assert all(abs(repeat.start - repeat.at - 0.333) < 0.03 for repeat in late)


@pytest.mark.skipif(not SPEECH, reason="SPEECH_CLIPS names no folder of recordings")
def test_copies_of_real_speech_are_found_and_different_speech_is_not():
    clips = []
    for path in sorted(Path(SPEECH).iterdir()):
        sound, rate = soundfile.read(path, dtype="float32", always_2d=True)
        clips.append(soxr.resample(sound.mean(axis=1), rate, RATE)[: 12 * RATE])
    changes = list(COPIES.values())
    found = found_in([*clips, *(change(clip) for change in changes for clip in clips)])
    assert all(one.repeats == () for one in found[: len(clips)])
    for place, one in enumerate(found[len(clips) :]):
        name, clip = list(COPIES)[place // len(clips)], place % len(clips)
        assert not one.kept and {repeat.of for repeat in one.repeats} == {clip}, (name, clip)


def test_parts_are_found_with_their_times():
    first, second = babble(0, 20.0), babble(1, 20.0)
    mixed = np.concatenate([babble(2, 12.0), first[8 * RATE : 16 * RATE], babble(3, 8.0)])
    found = found_in([first, second, mixed, np.concatenate([mixed, second])])
    part = found[2]
    assert part.kept and part.share == pytest.approx(8 / 28)
    assert [(r.start, r.end, r.of) for r in part.repeats] == [(12.0, 16.0, 0), (16.0, 20.0, 0)]
    assert [r.at for r in part.repeats] == pytest.approx([8.0, 12.0], abs=0.03)
    assert not found[3].kept and found[3].share == 1


def test_a_steady_tone_is_no_repeat_and_what_a_recording_says_twice_is_one():
    times = np.arange(30 * RATE) / RATE
    tone = (0.1 * np.sin(2 * np.pi * 440 * times)).astype(np.float32)
    once = babble(0, 8.0)
    found = found_in([tone, np.zeros(20 * RATE, np.float32), np.concatenate([once, babble(1, 8.0), once])])
    assert found[0].repeats == found[1].repeats == ()
    assert [(r.start, r.end, r.of, round(r.at)) for r in found[2].repeats] == [(16, 20, 2, 0), (20, 24, 2, 4)]


def test_what_is_only_in_a_recording_that_is_left_out_stays():
    """The second is left out for its first half; the third has its second half, which is nowhere else."""
    first = babble(0, 16.0)
    second = np.concatenate([first[: 12 * RATE], babble(1, 8.0)])
    third = second[12 * RATE :]
    assert [one.kept for one in found_in([first, second, third])] == [True, False, True]


def test_frequent_stretches_are_counted():
    jingle = babble(0, 4.0)
    found = found_in([np.concatenate([babble(n, 8.0), jingle, babble(100 + n, 8.0)]) for n in range(1, 13)])
    assert all(one.frequent == 1 and one.kept for one in found) and found[0].repeats == ()
    few = found_in([np.concatenate([babble(n, 8.0), jingle]) for n in range(1, 6)])
    assert all(one.frequent == 0 for one in few)


def test_what_is_mostly_frequent_is_left_out_with_its_first_copy_where_the_rules_say_so(tmp_path):
    advert = babble(0, 8.0)
    for number in range(11):
        write(tmp_path, f"{number:02}.wav", advert)
    write(tmp_path, "11.wav", np.concatenate([advert, babble(50, 24.0)]))  # a quarter of it
    write(tmp_path, "12.wav", babble(51, 8.0))
    manifest, out = read_recordings(tmp_path), tmp_path / "unique.jsonl"
    kept = deduplicate(manifest, out)
    assert kept.report.kinds == {"repeat": 10} and kept.report.flags == {"partly_repeated": 1, "frequent": 2}
    made = deduplicate(manifest, out, RepeatRules(frequent_share=0.5))
    assert [item.id for item in read_recordings(out).items] == ["11", "12"]
    assert made.report.kinds == {"frequent": 11} and made.report.flags == {"frequent": 1}
    assert made.report.seconds == pytest.approx(40) and made.report.rejected_seconds == pytest.approx(88)
    assert "100% of recording" in dict(made.report.rejected)["00"] and made.found["11"].frequent_share == 0.25
    assert json.loads((tmp_path / "unique.report.json").read_text())["repeated"]["11"]["frequent_share"] == 0.25
    assert not deduplicate(manifest, out, RepeatRules(frequent_share=0.2)).found["11"].kept


def test_fingerprints_do_not_depend_on_blocks():
    sound = soxr.resample(babble(0, 8.0), RATE, 8000)[:, None]
    whole = fingerprint.fingerprint([sound])
    edges = [0, *np.sort(np.random.default_rng(0).integers(0, len(sound), 20)), len(sound)]
    parts = fingerprint.fingerprint([sound[a:b] for a, b in zip(edges, edges[1:], strict=False)])
    assert whole[0] == parts[0] == 320
    np.testing.assert_array_equal(whole[1], parts[1])
    np.testing.assert_array_equal(whole[2], parts[2])
    assert whole[2].max() < 1 << 26 and len(whole[2]) > 100
    assert fingerprint.fingerprint([sound[:100]])[0] == 1 and fingerprint.fingerprint([])[0] == 0


def write(folder: Path, name: str, sound: np.ndarray) -> None:
    soundfile.write(folder / name, sound, RATE)


@pytest.fixture
def podcasts(tmp_path):
    folder = tmp_path / "podcasts"
    folder.mkdir()
    for number in range(3):
        write(folder, f"{number}.wav", babble(number, 8.0))
    write(folder, "3.flac", COPIES["quieter"](babble(1, 8.0)))
    write(folder, "4.ogg", np.stack([babble(0, 8.0), babble(0, 8.0)], axis=1))
    (folder / "5.wav").write_bytes(b"RIFF no audio" * 20)
    return folder


def test_a_folder_becomes_a_manifest_of_what_is_new(podcasts):
    made = deduplicate(read_recordings(podcasts), podcasts / "unique.jsonl")
    assert [item.id for item in read_recordings(podcasts / "unique.jsonl").items] == ["0", "1", "2"]
    assert made.report.kinds == {"repeat": 2, "unreadable": 1} and made.report.usable == 3 and made.report.items == 6
    assert made.report.seconds == pytest.approx(24) and made.report.rejected_seconds == pytest.approx(16)
    told = json.loads((podcasts / "unique.report.json").read_text())
    assert told["repeated"]["4"]["repeats"][0]["of"] == "0" and not told["repeated"]["3"]["kept"]
    assert "100% of recording" in dict(made.report.rejected)["3"] and "is in 1" in dict(made.report.rejected)["3"]


def test_a_job_that_was_stopped_goes_on_and_gives_the_same(podcasts, monkeypatch):
    from moshijax.data import deduplicate as module

    monkeypatch.setattr(module, "_SHARD", 2)
    deduplicate(read_recordings(podcasts), podcasts / "once.jsonl")

    class Killed(Exception):
        pass

    def stop(done, total, report):
        if done == 3:
            raise Killed

    manifest = read_recordings(podcasts)
    with pytest.raises(Killed):
        deduplicate(manifest, podcasts / "twice.jsonl", progress=stop)
    assert not (podcasts / "twice.jsonl").exists()
    again = deduplicate(manifest, podcasts / "twice.jsonl")
    assert again.written == 2
    for end in (".jsonl", ".report.json", ".fingerprints/fingerprints.json"):
        assert (podcasts / f"once{end}").read_bytes() == (podcasts / f"twice{end}").read_bytes()
    assert deduplicate(manifest, podcasts / "twice.jsonl").written == 0


def test_a_decoder_that_crashes_is_counted(podcasts, monkeypatch):
    from moshijax.data import deduplicate as module

    write(podcasts, "segfault.wav", babble(9, 2.0))
    monkeypatch.setattr(module, "_hear", _endangered)
    made = deduplicate(read_recordings(podcasts), podcasts / "unique.jsonl")
    assert made.report.kinds["decoder"] == 1 and made.report.usable == 3


def _endangered(item):
    from moshijax.data.deduplicate import _hear

    endanger(item.audio)
    return _hear(item)


def test_bad_requests(podcasts, tmp_path):
    manifest = read_recordings(podcasts)
    with pytest.raises(ConfigError, match=r"write it as .*podcasts/NAME.jsonl"):
        deduplicate(manifest, tmp_path / "unique.jsonl")
    for wrong, message in (
        ({"share": 0}, "share is 0"),
        ({"votes": 1}, "votes is 1"),
        ({"frequent_share": 2}, "frequent_share is 2"),
        ({"segment_seconds": 0}, "seco"),
    ):
        with pytest.raises(ConfigError, match=message):
            RepeatRules(**wrong)
    for path in podcasts.glob("[0-4].*"):
        path.unlink()
    with pytest.raises(DataError, match="none of the 1 items"):
        deduplicate(read_recordings(podcasts), podcasts / "unique.jsonl")

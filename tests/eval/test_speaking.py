"""A model that answers calls while it trains: what it says is what its artifact says, and the best one is kept."""

from __future__ import annotations

import dataclasses
import json
from functools import partial
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile

from moshijax import lm, runtime
from moshijax.cli.train import evaluators_of
from moshijax.data.encoder import CodecEncoder
from moshijax.errors import ConfigError, DataError
from moshijax.eval.calls import HeldOutCall
from moshijax.eval.speaking import answer, figures
from moshijax.eval.spoken_qa import SpokenQA
from moshijax.eval.spoken_qa import play as play_questions
from moshijax.export import artifact
from moshijax.runtime import play
from moshijax.runtime.checks import split_seed
from moshijax.testing.tiny import LM, tiny_models
from moshijax.train.experiment import Speaking
from moshijax.train.loop import train
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from tests.eval.saved_models import save
from tests.train.support.grids import write_dialogues, write_text, write_tokenizer
from tests.train.support.models import codec_experiment, lm_experiment


def says_what_its_artifact_says(models, played_by: runtime.Rows) -> None:
    (codec_config, codec_params), (config, params), _ = models
    size = codec_config.frame_size
    rng = np.random.default_rng(0)
    users = [(0.2 * rng.standard_normal(frames * size)).astype(np.float32) for frames in (30, 22, 41)]
    played, _ = play.play(played_by, users)
    longest = (41 + config.layout.max_delay) * size
    codes = CodecEncoder(codec_config, codec_params).encode([np.pad(u, (0, longest - len(u))) for u in users])
    seeds = np.stack([split_seed(n) for n in range(3)])
    tokens = np.asarray(jax.jit(partial(answer, config))(params, np.stack(codes)[:, :3], seeds))
    assert tokens.shape == (3, 41)
    for row, call in enumerate(played):
        assert len(set(call.text_tokens.tolist())) > 8  # (they do say something)
        np.testing.assert_array_equal(tokens[row, : len(call.text_tokens)], call.text_tokens)


def test_what_it_says_is_what_its_artifact_says(models, loaded) -> None:
    says_what_its_artifact_says(models, runtime.Rows(loaded, 4, prompts=False))


@pytest.mark.slow
def test_a_longer_delay_too(tmp_path) -> None:
    layout = lm.layouts.dialogue(codebooks=3, acoustic_delay=2)
    models = tiny_models(lm_config=dataclasses.replace(LM, layout=layout))
    built = artifact.build(*models, tmp_path / "artifact", batches=(3,), prefill_lengths=(4,))
    says_what_its_artifact_says(models, runtime.Rows(runtime.load(built), 3, prompts=False))


def test_figures_count_what_is_right() -> None:
    def call(kind, expected, answered):
        return HeldOutCall("x", "all", kind, "asked", expected, answered)

    calls = [call("question", "rain", "Rain."), call("question", "cold", "rain"), call("unrelated", "", "rain")]
    assert figures(calls) == {"calls/right": 1 / 3, "calls/exact": 0.5, "calls/unrelated_answered": 1.0}
    assert figures([call("silence", "", "")]) == {"calls/right": 1.0, "calls/silence_answered": 0.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Data, codec and held-out calls of a language model."""
    path = tmp_path_factory.mktemp("speaking")
    (config, params), _, _ = tiny_models()
    sha256 = CodecEncoder.load(save(path / "codec", "codec", config, params)).sha256
    write_dialogues(path / "grids", codebooks=2, codec=sha256)
    write_text(path / "text", write_tokenizer(path / "tokenizer.model"))
    (path / "calls").mkdir()
    rng, lines = np.random.default_rng(0), []
    for number, (question, answered) in enumerate([("is it", "yes"), ("who", ""), ("", ""), ("well", ""), ("", "")]):
        pcm = np.stack([np.zeros(5000 + 640 * number), 0.1 * rng.standard_normal(5000 + 640 * number)], axis=1)
        soundfile.write(path / "calls" / f"{number}.wav", pcm.astype(np.float32), 8000)
        sidecar = {"alignments": [], "meta": {"question": question, "answer": answered}}
        (path / "calls" / f"{number}.json").write_text(json.dumps(sidecar))
        lines.append(json.dumps({"path": f"{number}.wav", "duration": len(pcm) / 8000}))
    (path / "calls" / "manifest.jsonl").write_text("\n".join(lines) + "\n")
    return path


def spoken(folder: Path, **fields):
    speaking = Speaking(str(folder / "calls"), str(folder / "codec"), batch=2)
    defaults = {"eval_every": 4, "checkpoint_every": 3, "keep_checkpoints": 1, "speaking": speaking, "ema_decay": 0.5}
    return lm_experiment(folder, **{"steps": 12, "keep_best": "calls/right", **defaults, **fields})


@pytest.fixture(scope="module")
def whole_run(folder) -> Path:
    experiment = spoken(folder)
    train(experiment, folder / "run", evaluators=evaluators_of(experiment, folder / "run"))
    return folder / "run"


def spoken_lines(run_dir: Path) -> dict[int, dict[str, float]]:
    """Step -> the figures of its calls."""
    lines = read_metrics(run_dir / "metrics.jsonl")
    found = {line["step"]: {n: x for n, x in line.items() if n.startswith("calls/")} for line in lines}
    return {step: values for step, values in found.items() if values}


def best_of(lines: dict[int, dict[str, float]]) -> int:
    return max(lines, key=lambda step: lines[step]["calls/right"])  # the first of equal ones


def test_the_best_by_speaking_is_the_model_of_the_run(whole_run) -> None:
    lines = spoken_lines(whole_run)
    assert list(lines) == [4, 8, 12]
    assert all(set(values) == {f"calls/{n}" for n in ("right", "exact", "unrelated_answered", "silence_answered")}
               for values in lines.values())  # fmt: skip
    assert load_run(whole_run).step == best_of(lines) and load_run(whole_run, 12).step == 12
    kept = sorted(int(path.name) for path in (whole_run / "checkpoints").iterdir() if path.name.isdecimal())
    assert kept == sorted({best_of(lines), 12})


@pytest.mark.slow
def test_its_artifact_has_the_same_figures(folder, whole_run, tmp_path, cli) -> None:
    options = ("--codec", folder / "codec", "--batch", "1,2")
    code, _, err = cli("export", whole_run, tmp_path / "artifact", *options)
    assert code == 0, err
    settings = SpokenQA(str(tmp_path / "artifact"), str(folder / "calls"), untrained=None)
    lines = spoken_lines(whole_run)
    assert figures(play_questions(settings, tmp_path / "reply.wav").calls) == lines[best_of(lines)]


def test_what_cannot_speak_is_refused_before_it_trains(folder, run_dir, codec_speech) -> None:
    experiment = codec_experiment(codec_speech, speaking=Speaking("calls", "codec"))
    with pytest.raises(ConfigError, match="'codec' answers no calls"):
        evaluators_of(experiment, run_dir)
    with pytest.raises(ConfigError, match="keep_best is 'calls/right', but nothing measures it; set speaking"):
        spoken(folder, speaking=None)
    with pytest.raises(ConfigError, match="best_is is 'most'"):
        spoken(folder, best_is="most")


def test_another_codec_is_refused(folder, run_dir, tmp_path) -> None:
    (config, params), _, _ = tiny_models(seed=1)
    other = save(tmp_path / "other", "codec", config, params)
    experiment = spoken(folder, speaking=Speaking(str(folder / "calls"), str(other)), steps=4)
    with pytest.raises(DataError, match="the data of the run was encoded with"):
        train(experiment, run_dir, evaluators=evaluators_of(experiment, run_dir))

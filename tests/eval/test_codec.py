"""Figures of a codec: from a run, from published weights, and while it trains."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from moshijax import codec
from moshijax.cli.train import evaluators_of
from moshijax.data.encoder import CodecEncoder
from moshijax.data.manifest import read_recordings
from moshijax.errors import ConfigError
from moshijax.eval.codec import (
    CodecEvaluation,
    codebook_counts,
    draw_clips,
    measure_distances,
    stability,
)
from moshijax.report.run import panels_of
from moshijax.train.loop import train
from moshijax.train.run.metrics import readable_evaluation
from moshijax.weights import load_mimi
from moshijax.weights.run_files import read_metrics
from tests.codec.small import filled, noise
from tests.train.support.models import CODEC, codec_experiment, with_audio


@pytest.fixture(scope="module")
def run(codec_speech):
    """Five steps with evaluations after three of them and at the end, as the command line runs them."""
    experiment = codec_experiment(codec_speech, steps=5, eval_batches=1, eval_every=3, log_every=1)
    experiment = with_audio(experiment, eval_data=dataclasses.replace(experiment.task.audio.data, batch_size=2))
    train(experiment, codec_speech / "run", evaluators=evaluators_of(experiment, codec_speech / "run"))
    return codec_speech / "run"


def test_training_reports_how_the_codec_sounds(run):
    line = [line for line in read_metrics(run / "metrics.jsonl") if "eval/3_codebooks/si_sdr" in line][-1]
    names = {
        "eval/2_codebooks/mel",
        "eval/3_codebooks/mel",
        "eval/stability/codebook_2",
        "eval/stability_shifted/codebook_0",
    }
    assert names <= line.keys() and line["step"] == 5
    assert all(0 <= line[f"eval/stability/codebook_{q}"] <= 1 for q in range(3))
    # What measuring compiles is no program of the run that was compiled too late.
    counts = [x["time/compilations"] for x in read_metrics(run / "metrics.jsonl") if "time/compilations" in x]
    assert counts[0] > 0 and counts[1:] == [0.0] * 4
    shown = readable_evaluation(5, line)
    assert len(shown) < 200 and "eval/loss" in shown and "eval/3_codebooks/stoi" in shown and "stability" not in shown
    page = (run / "evaluation.html").read_text()
    assert "Step 5" in page and page.count("<audio") == 2 * 3 and "data:image/png" in page
    panels = panels_of(read_metrics(run / "metrics.jsonl"))
    assert {"mel", "waveform", "commitment", "distillation"} <= set(panels["Parts of the loss"].values())
    for title in ("Use of codebooks, as entropy", "Codes replaced, share"):
        assert list(panels[title].values()) == ["0", "1", "2"]
    assert list(panels["Held-out STOI"].values()) == ["2", "3", "noise"]


def test_a_command_measures_a_run(run, codec_speech, tmp_path, cli):
    fields = {"codec": run, "speech": codec_speech, "clips": 2, "seconds": 0.8}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    code, out, err = cli("eval", "eval/codec.gin", "--out", tmp_path / "report", *arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "report" / "results.json").read_text())
    assert "2_codebooks/si_sdr" in found["values"] and "wrote" in out
    provenance = found["provenance"]
    assert provenance["model"] == CodecEncoder.load(run).sha256
    assert provenance["data"] == {"speech": read_recordings(codec_speech).sha256}
    assert provenance["code"].startswith("moshijax ") and provenance["settings"]["clips"] == 2
    assert "<audio" in (tmp_path / "report" / "report.html").read_text()


def test_noise_is_the_anchor_of_every_figure():
    time = np.arange(24_000, dtype=np.float32)
    clip = 0.3 * np.sin(time / 8) * (1 + np.sin(time / 700))
    values = measure_distances(CODEC, filled(CODEC), clip[None], (3,)).values
    assert {"noise/si_sdr", "noise/mel", "noise/stoi"} <= values.keys()
    assert values["noise/si_sdr"] < -20 and 0 < values["noise/stoi"] < 0.8
    assert values == measure_distances(CODEC, filled(CODEC), clip[None], (3,)).values


def test_abx_of_a_run(run, codec_speech, tmp_path):
    evaluation = CodecEvaluation(str(run), str(codec_speech), clips=1, seconds=0.8, phonemes=str(codec_speech))
    results = evaluation.run(tmp_path)
    assert any("ABX over 0 pairs" in note for note in results.notes)  # one phoneme a speaker: nothing to compare


def test_stability_is_the_share_of_equal_codes(run):
    variables = codec.inference_layout(CODEC, load_mimi(run)[1])
    time = np.arange(6400)
    wave = 0.3 * np.sin(time / 10 + time**2 / 3e5).astype(np.float32)[None]
    codes = np.asarray(codec.encode(CODEC, variables, wave))
    assert (stability(CODEC, variables, codes, wave[0], 0.0) == 1).all()
    other = codes.copy()
    other[0, 2, :2] = (other[0, 2, :2] + 1) % 16
    np.testing.assert_allclose(stability(CODEC, variables, other, wave[0], 0.0), [1, 1, 0.8])
    assert (stability(CODEC, variables, codes, wave[0], 0.04) < 1).any()  # half a frame later


def test_silent_clips_are_counted_not_averaged():
    clips = np.stack([noise(1, 6400), np.zeros(6400, np.float32)])
    measured = measure_distances(CODEC, filled(CODEC), 0.1 * clips, (3,))
    assert np.isfinite(measured.values["3_codebooks/si_sdr"])
    assert "3_codebooks/si_sdr is not defined for 1 of 2 clips" in measured.notes


def test_clips_and_counts(codec_speech):
    clips = draw_clips(CODEC, str(codec_speech), 3, 0.81, 0)
    assert clips.shape == (3, 10 * 640) and np.array_equal(clips, draw_clips(CODEC, str(codec_speech), 3, 0.81, 0))
    assert codebook_counts(CODEC, ()) == (2, 3) and codebook_counts(codec.configs.MIMI, ()) == (2, 4, 8, 32)
    with pytest.raises(ConfigError, match="must be 1 to 3"):
        codebook_counts(CODEC, (4,))
    with pytest.raises(ConfigError, match="clips 0"):
        CodecEvaluation("a", "b", clips=0)

from __future__ import annotations

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import codec
from moshijax.codec import losses, training
from moshijax.codec.quantizer_training import QuantizerTraining
from moshijax.data import audio
from moshijax.errors import ConfigError
from moshijax.nn.vq import codebook_tables
from moshijax.train.loop import train
from moshijax.train.tasks.codec import CodecLoss
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from moshijax.weights.transfer import export_weights
from tests.train.support.devices import run_on_devices
from tests.train.support.models import CODEC, batches_of, codec_experiment, with_audio, write_codec_data
from tests.train.test_loop import Crash, assert_bit_equal, at_step, crash, numbers, state_at


@pytest.fixture(scope="module")
def whole_run(codec_speech):
    train(codec_experiment(codec_speech, steps=40), codec_speech / "whole")
    return codec_speech / "whole"


def test_losses_fall_and_codebooks_are_used(whole_run):
    lines = read_metrics(whole_run / "metrics.jsonl")
    for name in ("loss", "mel/loss", "distillation/loss"):
        assert lines[-1][f"train/{name}"] < 0.9 * lines[0][f"train/{name}"], name
    assert all(lines[-1][f"train/codebook_{q}/usage_entropy"] > 0.5 for q in range(3))


def test_resume_is_bit_for_bit(codec_speech, whole_run, run_dir):
    experiment = codec_experiment(codec_speech, steps=40)
    with pytest.raises(Crash):
        train(experiment, run_dir, progress=at_step(17, crash))
    train(experiment, run_dir)
    assert_bit_equal(state_at(whole_run, 40, experiment), state_at(run_dir, 40, experiment))
    assert numbers(run_dir) == numbers(whole_run)


def test_a_recording_that_cannot_be_used_is_counted(tmp_path, run_dir, caplog):
    write_codec_data(tmp_path / "speech")
    (tmp_path / "speech" / "call-3.wav").write_text(
        "this is no audio, however long it may be made to look by more words"
    )
    with caplog.at_level("INFO", "moshijax"):
        train(codec_experiment(tmp_path / "speech", steps=10), run_dir)
    assert [line["data/skipped_recordings"] for line in read_metrics(run_dir / "metrics.jsonl")] == [1.0, 1.0]
    messages = [record.getMessage() for record in caplog.records]
    assert sum("call-3.wav is not readable audio" in message for message in messages) == 1
    assert sum("  skipped recordings 1  " in message for message in messages) == 2


def lose_decoder(patch, call):
    """Let the decoder hang, once: at that call, whatever it reads."""
    calls, read_window = itertools.count(1), audio.read_window

    def read(path, *more):
        if next(calls) == call:
            raise audio.DecoderLost(f"recording {path} took too long")
        return read_window(path, *more)

    patch.setattr(audio, "read_window", read)


def test_what_a_decoder_was_lost_on_is_left_out_after_resuming_too(codec_speech, run_dir, tmp_path, monkeypatch):
    """Although it would decode this time: what is drawn is what the run would have drawn if it had gone on."""
    experiment = codec_experiment(codec_speech, steps=12, log_every=6)
    experiment = with_audio(experiment, data=dataclasses.replace(experiment.task.audio.data, workers=0))
    with monkeypatch.context() as patch:
        lose_decoder(patch, 40)  # in batch 2 or 3
        train(experiment, tmp_path / "whole")
    with monkeypatch.context() as patch, pytest.raises(Crash):
        lose_decoder(patch, 40)
        train(experiment, run_dir, progress=at_step(7, crash))
    train(experiment, run_dir)
    assert [line["data/skipped_recordings"] for line in numbers(tmp_path / "whole")] == [1, 1]
    assert numbers(run_dir) == numbers(tmp_path / "whole")
    assert_bit_equal(state_at(tmp_path / "whole", 12, experiment), state_at(run_dir, 12, experiment))


def test_load_run_gives_a_codec_that_encodes(whole_run):
    family, config, params, _, tokenizer = load_run(whole_run)
    assert (family.kind, config, tokenizer) == ("codec", CODEC, None)
    wave = 0.3 * np.sin(np.arange(6400) / 10).astype(np.float32)[None]
    codes = np.asarray(codec.encode(config, params, wave))
    assert codes.shape == (1, 3, 10) and codes.min() >= 0 and codes.max() < 16
    assert len(np.unique(codes)) > 2
    assert np.isfinite(codec.decode(config, params, codes)).all()


def test_init_from_a_published_codec(codec_speech, whole_run, run_dir, tmp_path):
    export_weights(open_model(whole_run), tmp_path / "published", "kyutai")
    train(codec_experiment(codec_speech, init_from=str(tmp_path / "published"), steps=1, log_every=1), run_dir)
    first, late = (read_metrics(path / "metrics.jsonl")[0 - (path == whole_run)] for path in (run_dir, whole_run))
    # The codec continues where it was; the head that estimates the teacher starts afresh.
    assert first["train/mel/loss"] < 1.1 * late["train/mel/loss"]
    assert first["train/distillation/loss"] > 1.1 * late["train/distillation/loss"]


def test_every_loss_has_its_gradient_norm(codec_speech, whole_run):
    """By hand: what reaches the decoder's output there, commitment and distillation at the encoder's latent."""
    experiment = codec_experiment(codec_speech, steps=40)
    settings = QuantizerTraining(dropout=False, quantization_rate=1.0)
    task = dataclasses.replace(experiment.task, quantizer=settings, loss=CodecLoss(latent_distillation=2.0))
    state, batch = state_at(whole_run, 40, experiment), batches_of(experiment, "audio").batch(0)
    key, rows = jax.random.key(0), jnp.arange(8)
    denominators = task.denominators("generator", batch)
    parts = jax.jit(
        lambda p: task.loss_parts("generator", p, state.model_state, {**batch, "row": rows}, denominators, key)
    )
    sums = parts(state.params).sums
    variables = {"params": state.params, "codebooks": state.model_state}
    out = training.forward(CODEC, settings, variables, batch["audio"], key)
    latent, middle = np.asarray(out.latent), out.bottleneck
    at_output = {
        "mel": lambda y: losses.multi_scale_mel(y, batch["audio"], 8000).sum(),
        "waveform": lambda y: losses.waveform_l1(y, batch["audio"]).sum(),
    }
    want = {name: jax.grad(loss)(out.reconstruction) for name, loss in at_output.items()}
    slope, at = 0.0, 0
    for name in ("semantic", "acoustic"):
        book = state.model_state["quantizer"][name]
        inputs = state.params["quantizer"][name]["input_proj"]["kernel"]
        residual = latent @ inputs.T
        for table in np.asarray(codebook_tables(book)):
            residual = residual - table[np.asarray(middle.codes[:, at])]
            slope, at = slope + 2 / residual[0].size / 3 * residual @ inputs, at + 1
    want["commitment"] = slope
    teacher, semantic = losses.pool_teacher(batch["teacher"], 10), state.params["quantizer"]["semantic"]
    for name, estimated in (("distillation", middle.semantic), ("latent_distillation", middle.semantic_latent)):
        distance = lambda x: losses.cosine_distance(training.teacher_estimate(variables, x), teacher).sum()  # noqa: E731
        at_level = np.asarray(jax.grad(distance)(estimated))
        want[name] = at_level @ semantic["output_proj"]["kernel"] @ semantic["input_proj"]["kernel"]
    for name, gradient in want.items():
        total, count = sums[f"{name}/grad_norm"]
        expected = np.sqrt((np.asarray(gradient) ** 2).sum(axis=tuple(range(1, gradient.ndim)))).sum()
        assert expected > 0 and count == 8
        np.testing.assert_allclose(total, expected, rtol=2e-3, err_msg=name)
    written = read_metrics(whole_run / "metrics.jsonl")[-1]
    assert all(written[f"train/{name}/grad_norm"] > 0 for name in ("mel", "waveform", "commitment", "distillation"))


def test_held_out_audio_is_coded_as_it_will_be(codec_speech, whole_run):
    """With all levels in every row, whatever training draws: the losses of `encode`, then `decode`."""
    experiment = codec_experiment(codec_speech, steps=40)
    training_draws = QuantizerTraining(quantization_rate=0.3, dropout=True)
    task = dataclasses.replace(experiment.task, quantizer=training_draws)
    state, batch = state_at(whole_run, 40, experiment), batches_of(experiment, "audio").batch(0)
    rows, (kind,) = {**batch, "row": jnp.arange(8)}, task.step_kinds()
    found = jax.jit(lambda p, s, b, k: task.held_out_parts(kind, p, s, b, k))(
        state.params, state.model_state, rows, jax.random.key(0)
    )
    variables = training.codec_variables({"params": state.params, "codebooks": state.model_state})
    codes = codec.encode(CODEC, variables, batch["audio"])
    decoded = codec.decode(CODEC, variables, codes)
    want = {
        "mel": losses.multi_scale_mel(decoded, batch["audio"], 8000),
        "waveform": losses.waveform_l1(decoded, batch["audio"]),
    }
    for name, values in want.items():
        total, count = found.sums[f"{name}/loss"]
        assert count == 8 and float(total) == pytest.approx(float(values.sum()), rel=1e-4), name
    weights = {"mel": 2.0, "waveform": 1.0, "commitment": 1.0, "distillation": 1.0}
    assert set(found.sums) == {f"{name}/loss" for name in weights}
    total = sum(weight * float(found.sums[f"{name}/loss"][0]) for name, weight in weights.items()) / 8
    assert float(found.loss) == pytest.approx(total, rel=1e-5)


@pytest.mark.slow
def test_microbatches_change_only_rounding(codec_speech, tmp_path):
    for count in (1, 2):
        train(codec_experiment(codec_speech, microbatches=count, steps=3, log_every=1), tmp_path / str(count))
    ours, theirs = (read_metrics(tmp_path / n / "metrics.jsonl") for n in ("1", "2"))
    for a, b in zip(ours, theirs, strict=True):
        for name in ("train/loss", "train/mel/loss", "train/codebook_0/usage_entropy"):
            np.testing.assert_allclose(a[name], b[name], rtol=2e-3)
    for name in ("train/loss", "train/mel/loss", "train/grad_norm"):
        np.testing.assert_allclose(ours[0][name], theirs[0][name], rtol=1e-4)


@pytest.mark.slow
def test_codebooks_are_the_same_on_8_devices(codec_speech):
    run_on_devices(8, "tests.train.support.multi_device:codebooks_agree_with_one_device", codec_speech)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_samples": 6401}, "data: num_samples 6401 is not a multiple of the frame size 640"),
        ({"sample_rate": 24000, "num_samples": 6400}, "data: sample_rate is 24000, the codec's is 8000"),
        ({"teacher": None}, "data: features of width None, but teacher_dim is"),
    ],
)
def test_data_that_do_not_fit_are_refused(codec_speech, run_dir, change, message):
    experiment = codec_experiment(codec_speech)
    changed = dataclasses.replace(experiment.task.audio.data, **change)
    with pytest.raises(ConfigError, match=message):
        train(with_audio(experiment, data=changed), run_dir)
    with pytest.raises(ConfigError, match=f"eval_{message}"):
        train(with_audio(experiment, eval_data=changed), run_dir)
    assert not run_dir.exists()

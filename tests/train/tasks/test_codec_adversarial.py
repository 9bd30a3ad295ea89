"""Two networks in one run: the discriminators learn first, each with its own optimiser, and both are safe."""

from __future__ import annotations

import dataclasses
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict

from moshijax import codec, config
from moshijax.codec import training
from moshijax.codec.balancer import Balancer
from moshijax.errors import ConfigError
from moshijax.train import sharding
from moshijax.train.loop import train
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.state import plan_state
from moshijax.train.steps import make_step
from moshijax.train.tasks.codec import CodecLoss, CodecTask
from moshijax.weights import load_mimi
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from moshijax.weights.transfer import export_weights
from tests.parity.test_way_back import reference_python
from tests.train.support.models import (
    CODEC,
    JUDGES,
    adversarial_experiment,
    adversarial_task,
    batches_of,
    codec_experiment,
    codec_steps,
    with_audio,
)
from tests.train.test_loop import Crash, assert_bit_equal, at_step, crash, numbers, state_at


@pytest.fixture(scope="module")
def experiment(codec_speech):
    experiment = adversarial_experiment(codec_speech, steps=20, eval_batches=1, eval_every=10)
    return with_audio(experiment, eval_data=dataclasses.replace(experiment.task.audio.data, batch_size=2))


@pytest.fixture(scope="module")
def whole_run(codec_speech, experiment):
    train(experiment, codec_speech / "whole")
    return codec_speech / "whole"


@pytest.fixture(scope="module")
def one_step(experiment):
    """The step function and a state whose codebooks are there, without a mesh."""
    task = experiment.task
    with sharding.context(sharding.make_mesh(experiment.mesh)):
        plan = plan_state(task, experiment, sharding.make_mesh(experiment.mesh))
        step = make_step(task, experiment, plan, *task.step_kinds())
        state = plan.create(0)
    batch = jax.tree.map(jnp.asarray, batches_of(experiment, "audio").batch(0))
    return jax.jit(step), state, batch


def test_both_networks_learn_and_the_losses_have_curves(whole_run):
    lines = read_metrics(whole_run / "metrics.jsonl")
    train_lines = [line for line in lines if "train/loss" in line]
    last = train_lines[-1]
    judged = [line["train/discriminator/loss"] for line in train_lines]
    assert min(judged[1:]) < 0.95 * judged[0]  # until the codec answers
    for name in ("adversarial", "feature", "commitment", "distillation"):
        assert np.isfinite(last[f"train/{name}/loss"]) and last[f"train/{name}/grad_norm"] > 0
    for name in ("discriminator/grad_norm", "discriminator/learning_rate", "discriminator/right_on_real"):
        assert np.isfinite(last[f"train/{name}"])
    assert last["train/discriminator/learning_rate"] != last["train/learning_rate"]
    held_out = [line for line in lines if "eval/mel/loss" in line]
    assert [line["step"] for line in held_out] == [10, 20]  # evaluation hears the distance, training does not
    assert "train/mel/loss" not in last


def test_resume_is_bit_for_bit(experiment, whole_run, run_dir):
    with pytest.raises(Crash):
        train(experiment, run_dir, progress=at_step(12, crash))
    train(experiment, run_dir)
    one, two = (state_at(path, 20, experiment) for path in (whole_run, run_dir))
    assert_bit_equal(one, two)
    assert set(one.opt_states) == {"discriminator", "generator"} and one.model_state["balancer"]["weight"] > 1
    assert numbers(run_dir) == numbers(whole_run)


def test_a_trained_codec_is_plain(whole_run, experiment):
    """What others load has no discriminators and no weight norm, and holds the running average."""
    family, config, variables, *_ = load_run(whole_run)
    assert (family.kind, config) == ("codec", CODEC)
    want = codec.init(CODEC, jax.random.key(0))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, want)
    state = state_at(whole_run, 20, experiment)
    assert "discriminators" not in state.ema
    average = training.codec_variables({"params": state.ema, "codebooks": state.model_state})
    jax.tree.map(np.testing.assert_array_equal, variables, average)
    wave = 0.3 * np.sin(np.arange(6400) / 10).astype(np.float32)[None]
    assert np.isfinite(codec.decode(config, variables, codec.encode(config, variables, wave))).all()


def test_discriminators_move_before_the_codec(one_step, experiment):
    """The codec's losses see the discriminators of this step, not of the last one."""
    step, state, batch = one_step
    new, packed = step(state, batch)
    reported = {name: a / b for name, (a, b) in packed.unpack().items()}
    task, plan_key = experiment.task, jax.random.split(_key(experiment, state.step))[0]
    batch = {**batch, "row": jnp.arange(8)}
    moved = {**state.params, "discriminators": new.params["discriminators"]}

    def adversarial(params):
        denominators = task.denominators("generator", batch)
        parts = task.loss_parts("generator", params, state.model_state, batch, denominators, plan_key)
        return parts.sums["adversarial/loss"]

    after, before = (float(a / b) for a, b in map(jax.jit(adversarial), (moved, state.params)))
    assert abs(reported["adversarial/loss"] - after) < 1e-5 < abs(after - before)


def _key(experiment, step):
    from moshijax.train.steps import step_key

    return step_key(experiment.seed, "audio", step)


def test_each_optimiser_owns_its_network(one_step):
    _, state, _ = one_step
    owned = {
        name: {path for keys in jax.tree_util.tree_leaves_with_path(opt) for path in [_path(keys[0])] if path}
        for name, opt in state.opt_states.items()
    }
    assert owned["discriminator"] and owned["generator"] and not owned["discriminator"] & owned["generator"]
    assert all(path.startswith("discriminators/") for path in owned["discriminator"])
    assert owned["discriminator"] | owned["generator"] == set(flatten_dict(state.params, sep="/"))


def _path(keys):
    return next((key.key for key in keys if "/" in str(getattr(key, "key", ""))), None)


def test_a_bad_batch_changes_neither_network(one_step):
    step, state, batch = one_step
    bad = {**batch, "audio": batch["audio"].at[0, 0].set(jnp.nan)}
    new, packed = step(state, bad)
    assert int(new.nonfinite) == 1 and int(new.step) == 1
    for name in ("params", "model_state", "opt_states", "ema"):
        assert_bit_equal(getattr(new, name), getattr(state, name))


def test_discriminators_that_fail_leave_the_codec_alone(one_step):
    """A non-finite update of one network undoes that of the other."""
    step, state, batch = one_step
    params = jax.tree.map(lambda x: x, state.params)
    kernel = params["discriminators"]["window_64"]["conv_0"]["kernel"]
    params["discriminators"]["window_64"]["conv_0"]["kernel"] = kernel.at[0].set(jnp.inf)
    broken = state.replace(params=params)
    new, _ = step(broken, batch)
    assert int(new.nonfinite) == 1
    assert_bit_equal(new.params, broken.params)


@pytest.mark.parametrize("clip", ["silent", "clipped", "constant", "one sample"])
def test_degenerate_clips_give_finite_steps(one_step, clip):
    step, state, batch = one_step
    shape = batch["audio"].shape
    audio = {
        "silent": jnp.zeros(shape),
        "clipped": jnp.sign(batch["audio"]),
        "constant": jnp.full(shape, 0.5),
        "one sample": jnp.zeros(shape).at[:, 0].set(1.0),
    }[clip]
    for _ in range(3):
        state, packed = step(state, {**batch, "audio": audio})
        assert int(state.nonfinite) == 0
        assert [name for name, (value, _) in packed.unpack().items() if not np.isfinite(value)] == []


def test_a_run_starts_from_a_codec_without_discriminators_and_weight_norm(codec_speech, run_dir):
    plain = codec_speech / "plain"
    task = dataclasses.replace(adversarial_task(codec_speech), loss=CodecLoss(), discriminators=None, weight_norm=False)
    train(codec_experiment(codec_speech, task=task, steps=2), plain)
    still = OptimizerConfig(learning_rate=0.0)
    train(adversarial_experiment(codec_speech, steps=1, log_every=1, init_from=str(plain), optimizer=still), run_dir)
    assert read_metrics(run_dir / "metrics.jsonl")[-1]["train/discriminator/loss"] > 0
    before, after = (load_run(path).params["params"] for path in (plain, run_dir))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), before, after)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_total_norm_takes_the_place_of_the_rows_of_a_published_worker(codec_speech, workers):
    """The gradient of all parameters is that of audiocraft's solver on so many workers, which share 8 rows."""
    balance = Balancer(total_norm=8 / workers)
    loss = CodecLoss(mel=2.0, waveform=0.1, distillation=1.0, balancer=balance)
    task = dataclasses.replace(codec_experiment(codec_speech).task, loss=loss)
    batch = {**batches_of(codec_experiment(codec_speech), "audio").batch(0), "row": jnp.arange(8)}
    params, state = task.init(jax.random.key(0))
    for part in state["quantizer"].values():
        part["initialized"] = jnp.ones_like(part["initialized"])
        part["embedding_sum"] = 0.1 * jax.random.normal(jax.random.key(2), part["embedding_sum"].shape)
    key = jax.random.key(1)

    def ours(params):
        return task.loss_parts("generator", params, state, batch, task.denominators("generator", batch), key).loss

    def forward(params):
        variables = {"params": params, "codebooks": state}
        return training.forward(task.model, task.quantizer, variables, batch["audio"], key, batch["row"], 8)

    def others(params):
        rows = task._latent_losses({"params": params, "codebooks": state}, batch, forward(params).bottleneck)
        assert set(rows) == {"commitment", "distillation"}
        return sum(value.mean() for value in rows.values())  # of all workers: the mean of their means

    output, back = jax.vjp(lambda params: forward(params).reconstruction, params)
    local = 8 // workers
    gradient = np.zeros(output.shape)
    for name, distance in {"mel": task._mel(batch["audio"]), "waveform": task._waveform(batch["audio"])}.items():
        slope = jax.grad(lambda y, name=name, distance=distance: distance(y)[name].sum())(output)
        slope = np.asarray(slope) / local  # of the mean over a worker
        norms = np.linalg.norm(slope, axis=1).reshape(workers, local).mean(1)
        gradient += task.loss.output_weights[name] / 2.1 * slope / norms.mean()
    penalty = jax.grad(others)(params)
    theirs = jax.tree.map(lambda a, b: a / workers + b, back(jnp.asarray(gradient, jnp.float32))[0], penalty)
    found = jax.jit(jax.grad(ours))(params)
    assert optax.tree.norm(penalty["encoder"]) > 0 and optax.tree.norm(theirs["decoder"]) > 0
    for (path, a), b in zip(jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * np.abs(b).max(), err_msg=jax.tree_util.keystr(path))


def test_the_recipes_of_mimi_have_the_published_ratio():
    for name in ("mimi_adversarial", "mimi_reconstruction", "small_adversarial", "small_reconstruction"):
        assert config.load(f"codec/{name}.gin").task.loss.balancer == Balancer(total_norm=8.0)


def test_microbatches_change_only_rounding(codec_speech, tmp_path):
    """Without a balancer; with one, every part brings its own norms."""
    # A large eps: the codec sees discriminators that have moved, and Adam's first step turns rounding into signs.
    task = adversarial_task(codec_speech, dataclasses.replace(JUDGES, eps=1e-3), mel=1.0, balancer=None)
    for count in (1, 2):
        experiment = adversarial_experiment(codec_speech, task=task, microbatches=count, steps=1, log_every=1)
        train(experiment, tmp_path / str(count))
    ours, theirs = (read_metrics(tmp_path / n / "metrics.jsonl")[0] for n in ("1", "2"))
    for name in ("train/loss", "train/grad_norm", "train/discriminator/loss", "train/discriminator/grad_norm"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)


def test_refusals(codec_speech, run_dir):
    with pytest.raises(ConfigError, match="discriminators need a loss weight"):
        CodecTask(CODEC, codec_steps(codec_speech), loss=CodecLoss(adversarial=1.0))
    with pytest.raises(ConfigError, match="a balancer needs a loss"):
        CodecLoss(mel=0.0, waveform=0.0, balancer=Balancer())
    experiment = adversarial_experiment(codec_speech, task=adversarial_task(codec_speech, mel=1.0))
    small = dataclasses.replace(experiment.task.audio.data, num_samples=640)
    with pytest.raises(ConfigError, match="num_samples 640 is less than the longest window 1024"):
        train(with_audio(experiment, data=small), run_dir)


WAVE = 0.3 * np.sin(np.arange(6400) / 10 + np.arange(6400) ** 2 / 3e5).astype(np.float32)[None]


@pytest.fixture(scope="module")
def published(whole_run, tmp_path_factory):
    codec_speech = tmp_path_factory.mktemp("export") / "published"
    export_weights(open_model(whole_run), codec_speech, "kyutai")
    return codec_speech


def test_a_trained_codec_exports_to_the_published_format(whole_run, published):
    """Weight norm folded, averaged parameters, no discriminators: and the same codes."""
    _, config, variables, *_ = load_run(whole_run)
    again, read = load_mimi(published)
    assert dataclasses.replace(again, ring=config.ring) == config
    codes, others = (np.asarray(codec.encode(config, v, WAVE)) for v in (variables, read))
    np.testing.assert_array_equal(codes, others)
    assert len(np.unique(codes)) > 2


@pytest.mark.reference
@pytest.mark.skipif(reference_python() is None, reason="needs torch and moshi, or MOSHIJAX_REFERENCE_PYTHON")
def test_the_package_gives_the_codes_of_a_trained_codec(whole_run, published, tmp_path):
    np.save(tmp_path / "waveform.npy", WAVE)
    arguments = [published, tmp_path / "waveform.npy", tmp_path / "made.npz"]
    subprocess.run(
        [reference_python(), "-m", "tools.reference.codes", *map(str, arguments)],
        check=True,
        cwd=Path(__file__).parents[3],
    )
    _, config, variables, *_ = load_run(whole_run)
    with np.load(tmp_path / "made.npz") as want:
        np.testing.assert_array_equal(codec.encode(config, variables, WAVE), want["codes"])
        decoded = codec.decode(config, variables, want["codes"])
        np.testing.assert_allclose(decoded, want["decoded"], atol=1e-5)

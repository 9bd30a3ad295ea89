from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import data, lm
from moshijax.cli.main import run
from moshijax.data.text import Tokenizer, train_tokenizer
from moshijax.errors import ConfigError, DataError
from moshijax.tokens import ZERO
from moshijax.train import sharding
from moshijax.train.experiment import MeshConfig
from moshijax.train.feed import put
from moshijax.train.loop import train
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup
from moshijax.train.run.checkpoint import Checkpointer
from moshijax.train.run.compilations import Compilations
from moshijax.train.run.run_dir import RunDir
from moshijax.train.state import plan_state
from moshijax.train.steps import batch_shardings, compile_step
from moshijax.train.tasks.lm import draw_frames
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from moshijax.weights.transfer import export_weights, import_weights
from tests.train.support.devices import run_on_devices
from tests.train.support.grids import WORDS, write_dialogues, write_text
from tests.train.support.models import LM, batches_of, kind_of, lm_experiment, with_audio, write_lm_data
from tests.train.test_loop import Crash, assert_bit_equal, at_step, crash, numbers, state_at


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lm")
    write_lm_data(path)
    return path


@pytest.fixture(scope="module")
def whole_run(folder):
    train(lm_experiment(folder, steps=40, log_every=1), folder / "whole")
    return folder / "whole"


def test_losses_fall_and_are_reported_per_stream(whole_run):
    lines = [line for line in read_metrics(whole_run / "metrics.jsonl") if "train/loss" in line]
    for name in ("loss", "model_0/loss", "text_padding/loss"):
        assert lines[-1][f"train/{name}"] < 0.9 * lines[0][f"train/{name}"], name
    text = [line["train_text/loss"] for line in read_metrics(whole_run / "metrics.jsonl") if "train_text/loss" in line]
    assert len(text) == 10 and text[-1] < text[0]
    assert {"train/text_words/loss", "train/model_1/accuracy", "throughput/audio_seconds"} <= lines[-1].keys()


def test_the_first_loss_is_that_of_the_model_alone(folder, whole_run):
    experiment = lm_experiment(folder)
    state = plan_state(experiment.task, experiment, sharding.make_mesh(experiment.mesh)).create(0)
    codes = batches_of(experiment, "audio").batch(0)["codes"]
    loss = lm.losses.loss_fn(LM, experiment.task.loss, lm.score(LM, state.params, codes), codes)
    line = read_metrics(whole_run / "metrics.jsonl")[0]
    np.testing.assert_allclose(line["train/loss"], loss, rtol=1e-5)


def test_what_a_batch_holds(folder):
    experiment = lm_experiment(folder)
    batch = {"codes": np.zeros((8, LM.layout.num_streams, 16), np.int32)}
    amounts = {name: experiment.task.amounts(kind_of(experiment, name), batch) for name in ("audio", "text")}
    assert amounts == {"audio": {"frames": 128, "audio_seconds": 10.24}, "text": {"text_tokens": 128}}


def test_every_row_draws_frames_of_its_own():
    """All of them as often as any other, none twice, and not those of the next step."""
    rows = jnp.arange(3000)
    drawn = np.asarray(draw_frames(jax.random.key(1), rows, 8, 0.375))
    assert drawn.shape == (3000, 3) and (np.diff(drawn, axis=1) > 0).all()
    np.testing.assert_allclose(np.bincount(drawn.ravel(), minlength=8) / 3000, 0.375, atol=0.05)
    _, counts = np.unique(drawn, axis=0, return_counts=True)
    assert len(counts) == 56 and counts.max() < 2 * 3000 / 56  # every choice of 3 from 8
    np.testing.assert_array_equal(draw_frames(jax.random.key(1), rows[70:75], 8, 0.375), drawn[70:75])
    assert (np.asarray(draw_frames(jax.random.key(2), rows, 8, 0.375)) != drawn).any(axis=1).mean() > 0.9
    assert draw_frames(jax.random.key(1), rows[:2], 8, 0.01).shape == (2, 1)


def test_text_steps_train_only_what_text_trains(folder):
    experiment = lm_experiment(folder)
    mesh = sharding.make_mesh(experiment.mesh)
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        source, kind = batches_of(experiment, "text"), kind_of(experiment, "text")
        program = compile_step(experiment.task, experiment, plan, kind, source.batch(0), mesh)
        where = batch_shardings(source.batch(0), mesh, 1)
        state = plan.create(0)
        start = jax.device_get(state)
        for n in range(3):
            state, _ = program.run(state, put(source.batch(n), where))
    end = jax.device_get(state)
    changed, same = set(), set()
    leaves = zip(jax.tree_util.tree_leaves_with_path(start.params), jax.tree.leaves(end.params), strict=True)
    for (keys, a), b in leaves:
        (same if a.tobytes() == b.tobytes() else changed).add(keys[0].key)
    assert changed == {"temporal", "out_norm", "text_embedding", "text_head"}
    assert same == {"audio_embedding", "depth"}
    assert_bit_equal(start.opt_states["audio"], end.opt_states["audio"])


def test_a_batch_without_targets_has_loss_0_and_is_no_fault(folder):
    experiment = lm_experiment(folder)
    mesh = sharding.make_mesh(experiment.mesh)
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        batch = batches_of(experiment, "audio").batch(0)
        program = compile_step(experiment.task, experiment, plan, kind_of(experiment, "audio"), batch, mesh)
        empty = {"codes": np.full_like(batch["codes"], ZERO)}
        state, packed = program.run(plan.create(0), put(empty, batch_shardings(empty, mesh, 1)))
    sums = packed.unpack()
    assert sums["loss"] == (0.0, 1.0) and sums["nonfinite"][0] == 0 and sums["text_words/loss"] == (0.0, 0.0)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(jax.device_get(state)))


def test_an_item_longer_than_all_others_changes_nothing(folder, run_dir):
    """Nor one shorter than a window: no compilation after the first step, and as much memory at every step."""
    lengths = (5, *[40] * 6, 4000)
    write_dialogues(folder / "uneven", frames=lengths, codebooks=2)
    grids = data.GridData((str(folder / "uneven"),), batch_size=8, num_frames=16)
    experiment = lm_experiment(folder, audio={"data": grids}, text=None, steps=12, log_every=1, checkpoint_every=100)
    source, shape = batches_of(experiment, "audio"), (8, LM.layout.num_streams, 16)
    assert source.items > 100  # windows, nearly all of the long item
    assert {source.batch(n)["codes"].shape for n in range(60)} == {shape}
    compiled, held = [], []

    def progress(done, steps, values):
        compiled.append(values["time/compilations"])
        held.append(sum(x.nbytes for x in jax.live_arrays()))

    with Compilations() as compilations:
        train(experiment, run_dir, progress=progress)
    assert [name for name in compilations.names if name.endswith("_step)")] == ["jit(audio_step)"]
    assert len(compiled) == 12 and compiled[0] > 0 and not any(compiled[1:])
    assert max(held) - min(held) <= 4 * 4 * np.prod(shape)  # batches made ahead, or not yet


def test_held_out_text_has_the_perplexity_of_the_model_alone(folder, whole_run, run_dir):
    """Of a run that takes no text step: what its text model is worth after speech."""
    held_out = data.TextData((str(folder / "text"),), batch_size=4, num_frames=16)
    fields = dict(text={"share": 0.0, "eval_data": held_out}, eval_batches=3, init_from=str(whole_run))
    frozen = OptimizerConfig(learning_rate=0.0)
    train(lm_experiment(folder, steps=1, optimizer=frozen, **fields), run_dir)
    line = next(x for x in read_metrics(run_dir / "metrics.jsonl") if "eval_text/loss" in x)
    experiment = lm_experiment(folder, **fields)
    found = experiment.task.batches(kind_of(experiment, "text"), held_out, experiment.seed)
    codes = np.concatenate([found.batch(n)["codes"] for n in range(3)])
    nll = lm.score(LM, load_run(whole_run).params, codes, text_only=True).nll[:, 0]
    valid = codes[:, 0] != ZERO
    assert line["eval_text/loss"] == pytest.approx(float((nll * valid).sum() / valid.sum()), rel=1e-5)
    assert line["eval_text/perplexity"] == pytest.approx(np.exp(line["eval_text/loss"]), rel=1e-5)
    assert "eval/loss" not in line and not any("audio" in name for name in line)


def test_golden_first_step(whole_run):
    """If a change of model, loss or trainer is meant to change these numbers, replace them by those pytest prints."""
    line = read_metrics(whole_run / "metrics.jsonl")[0]
    golden = {"train/loss": 6.254, "train/grad_norm": 3.587, "train/model_1/loss": 3.625, "train/text_words/loss": 4.32}
    assert {name: line[name] for name in golden} == pytest.approx(golden, rel=1e-3)


def test_resume_is_bit_for_bit(folder, whole_run, run_dir):
    experiment = lm_experiment(folder, steps=40, log_every=1)
    with pytest.raises(Crash):
        train(experiment, run_dir, progress=at_step(23, crash))
    train(experiment, run_dir)
    assert_bit_equal(state_at(whole_run, 40, experiment), state_at(run_dir, 40, experiment))
    assert numbers(run_dir) == numbers(whole_run)


def test_load_run_gives_the_model_and_its_tokenizer(folder, whole_run):
    family, config, params, step, tokenizer = load_run(whole_run)
    assert (family.kind, config, step) == ("lm", LM, 40)
    assert tokenizer.read_bytes() == (folder / "tokenizer.model").read_bytes()
    expected = state_at(whole_run, 40, lm_experiment(folder, steps=40)).params
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    codes = np.zeros((1, LM.layout.num_streams, 3), np.int32)
    assert np.isfinite(lm.forward(config, params, codes).logits).all()


def test_init_from_a_run(folder, whole_run, run_dir):
    train(lm_experiment(folder, init_from=str(whole_run), log_every=1, steps=2), run_dir)
    first, fresh = (read_metrics(path / "metrics.jsonl")[0] for path in (run_dir, whole_run))
    assert first["train/loss"] < 0.7 * fresh["train/loss"]


def test_init_from_weights_is_init_from_the_run_they_came_from(folder, whole_run, run_dir, tmp_path):
    export_weights(open_model(whole_run), tmp_path / "published", "kyutai")
    import_weights(tmp_path / "published", tmp_path / "imported")
    starts = {name: path for name, path in (("a", whole_run), ("b", tmp_path / "imported"))}
    for name, path in starts.items():
        train(lm_experiment(folder, init_from=str(path), log_every=1, steps=2), tmp_path / name)
    assert numbers(tmp_path / "a") == numbers(tmp_path / "b")
    task = lm_experiment(folder).task
    task = dataclasses.replace(task, model=dataclasses.replace(LM, scan_layers=False))
    for name, path in starts.items():
        train(lm_experiment(folder, init_from=str(path), task=task, log_every=1, steps=1), tmp_path / f"loose_{name}")
        first, same = (read_metrics(tmp_path / n / "metrics.jsonl")[0]["train/loss"] for n in (f"loose_{name}", name))
        assert first == pytest.approx(same, rel=1e-5)
    assert read_metrics(tmp_path / "b" / "metrics.jsonl")[0]["train/loss"] < 5
    task = lm_experiment(folder).task
    other = dataclasses.replace(task, model=dataclasses.replace(LM, text_card=LM.text_card + 1))
    experiment = lm_experiment(folder, init_from=str(tmp_path / "published"), task=other)
    with pytest.raises(DataError, match=r"text_embedding/table has shape \(1, \d+, \d+\) there, \(1, \d+, \d+\) here"):
        train(experiment, run_dir)


def test_weights_start_only_from_what_their_tokens_mean(folder, whole_run, run_dir, tmp_path):
    """Another tokenizer or codec than that of the weights is refused before anything is written; the remedy works."""
    other = train_tokenizer(WORDS, vocab_size=36, byte_fallback=False)
    other.save(tmp_path / "other.model")
    write_dialogues(tmp_path / "recoded", codebooks=2, codec="1" * 64)
    export_weights(open_model(whole_run), tmp_path / "published", "kyutai")
    experiment = lm_experiment(folder, steps=1, log_every=1)
    ours = Tokenizer.load(folder / "tokenizer.model").sha256
    write_text(tmp_path / "text", other)
    texts = dataclasses.replace(experiment.task.text.data, paths=(str(tmp_path / "text"),))
    text = dataclasses.replace(experiment.task.text, data=texts)
    task = dataclasses.replace(experiment.task, tokenizer=str(tmp_path / "other.model"), text=text)
    only_text = dataclasses.replace(task, audio=None, text=dataclasses.replace(text, share=1.0))
    for init_from in (str(whole_run), str(tmp_path / "published")):
        for changed in (task, only_text):
            renamed = dataclasses.replace(experiment, init_from=init_from, task=changed)
            found = f"{init_from} has a tokenizer .*sha256 {ours[:12]}.* one with {other.sha256[:12]}.*retokenize"
            with pytest.raises(DataError, match=found):
                train(renamed, run_dir)
    recoded = dataclasses.replace(experiment.task.audio.data, paths=(str(tmp_path / "recoded"),))
    with pytest.raises(DataError, match="a codec .*sha256 0{12}.* one with 1{12}.*prepare the data with"):
        train(with_audio(dataclasses.replace(experiment, init_from=str(whole_run)), data=recoded), run_dir)
    with pytest.raises(DataError, match="data of eval has a codec .* 1{12}.*data of audio one with 0{12}"):
        train(with_audio(experiment, eval_data=recoded), run_dir)
    assert not run_dir.exists()
    command = ["weights", "retokenize", str(whole_run), str(tmp_path / "new"), "--tokenizer", task.tokenizer]
    assert run(command) == 0
    resized = dataclasses.replace(task, model=dataclasses.replace(LM, text_card=other.vocab_size))
    train(dataclasses.replace(experiment, init_from=str(tmp_path / "new"), task=resized), run_dir)


def test_init_from_through_a_transform(folder, whole_run, run_dir):
    """The trained form of the model of a run, whose user is scored too; what does not fit is found before compiling."""
    scored = dataclasses.replace(LM, layout=lm.layouts.dialogue(2, 1, score_user=True))
    task = dataclasses.replace(lm_experiment(folder, text=None).task, model=scored)
    experiment = lm_experiment(folder, init_from=str(whole_run), task=task, log_every=1, steps=1)
    with pytest.raises(
        DataError,
        match=r"depth/heads/steps/kernel has shape \(2, .* there, \(4, .* params.depth.layers/mlp/up.*init_transforms",
    ):
        train(experiment, run_dir)
    with pytest.raises(ConfigError, match="release: that model has 2 depth steps and this one 4"):
        train(dataclasses.replace(experiment, init_transforms=("release",)), run_dir)
    with pytest.raises(ConfigError, match="init_transforms names 'score_usr'; there are helium_to_moshi, one_stream"):
        train(dataclasses.replace(experiment, init_transforms=("score_usr",)), run_dir)
    later = dataclasses.replace(task, model=dataclasses.replace(LM, layout=lm.layouts.dialogue(2, 2)))
    with pytest.raises(ConfigError, match=r"delays \(0, 0, 1, 0, 1\), this recipe \(0, 0, 2, 0, 2\): say how"):
        train(dataclasses.replace(experiment, task=later), run_dir)
    assert not run_dir.exists()
    train(dataclasses.replace(experiment, init_transforms=("score_user",)), run_dir)
    lines = {path: read_metrics(path / "metrics.jsonl") for path in (run_dir, whole_run)}
    # as good as that run's end, where its user's steps began as copies of the model's
    assert lines[run_dir][0]["train/model_0/loss"] < 0.7 * lines[whole_run][0]["train/model_0/loss"]
    assert "train/user_0/loss" in lines[run_dir][0]


@pytest.mark.slow
def test_microbatches_change_only_rounding(folder, tmp_path):
    for count in (1, 4):
        train(lm_experiment(folder, microbatches=count, steps=4, log_every=4), tmp_path / str(count))
    ours, theirs = (read_metrics(tmp_path / n / "metrics.jsonl")[0] for n in ("1", "4"))
    for name in ("train/loss", "train/model_1/loss", "train_text/loss", "train/grad_norm"):
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"text_card": 8}, "has .* pieces, but text_card is 8"),
        ({"card": 8}, "holds token .*, but card is 8"),
    ],
)
def test_a_model_that_does_not_fit_its_data_is_refused(folder, run_dir, change, message):
    experiment = lm_experiment(folder)
    task = dataclasses.replace(experiment.task, model=dataclasses.replace(LM, **change))
    with pytest.raises(ConfigError, match=message):
        train(dataclasses.replace(experiment, task=task), run_dir)
    assert not run_dir.exists()


def bad_recipes(folder):
    def grids(**fields):
        return data.GridData(**{"paths": (str(folder / "grids"),), "batch_size": 8, "num_frames": 16, **fields})

    task = lm_experiment(folder).task
    five = dataclasses.replace(LM, layout=lm.layouts.dialogue(5, 1))
    group = ParameterGroup("typo", "^dept/")
    return {
        "data": ({"audio": {"data": grids(paths=("nowhere",))}}, "nowhere holds no dataset.json"),
        "held-out data": ({"audio": {"eval_data": grids(paths=("nowhere",))}}, "nowhere holds no dataset.json"),
        "held-out text": ({"text": {"eval_data": data.TextData(("nowhere",), 8, 16)}}, "nowhere holds no dataset.json"),
        "text": ({"text": {"data": data.TextData(("nowhere",), 8, 16)}}, "nowhere holds no dataset.json"),
        "tokenizer": ({"task": dataclasses.replace(task, tokenizer="nowhere.model")}, "nowhere.model"),
        "codebooks": ({"task": dataclasses.replace(task, model=five)}, "wants codebook 2, but the data has 2"),
        "group": ({"optimizer": OptimizerConfig(groups=(group,))}, "pattern '\\^dept/' matches none of"),
        "all frozen": (
            {"optimizer": OptimizerConfig(groups=(ParameterGroup("all", ".", frozen=True),))},
            "every parameter of the update 'audio' is frozen",
        ),
        "microbatches": ({"microbatches": 3}, "8 rows does not divide by microbatches = 3"),
        "mesh": ({"mesh": MeshConfig(data=3)}, "needs 3 devices, but there"),
        "start": ({"init_from": "nowhere"}, "nowhere"),
    }


@pytest.mark.parametrize("name", [*bad_recipes(Path("."))])
def test_what_is_wrong_with_a_recipe_is_found_before_anything_is_compiled(folder, run_dir, monkeypatch, name):
    def compile_step(*_):
        raise AssertionError("compiled")

    monkeypatch.setattr("moshijax.train.steps.compile_step", compile_step)
    fields, message = bad_recipes(folder)[name]
    with pytest.raises((ConfigError, DataError), match=message):
        train(lm_experiment(folder, **fields), run_dir)
    assert not run_dir.exists()


@pytest.mark.slow
def test_8_devices_agree_with_one(folder):
    run_on_devices(8, "tests.train.support.multi_device:lm_agrees_with_one_device", folder)


@pytest.mark.slow
def test_options_of_the_loss_agree_with_one_device(folder):
    run_on_devices(8, "tests.train.support.multi_device:lm_options_agree_with_one_device", folder)


def test_a_size_that_does_not_divide_is_refused_before_anything_is_made(folder):
    out = run_on_devices(8, "tests.train.support.multi_device:lm_refuses_indivisible", folder)
    assert "text_head/kernel: dimension 'vocab' of size 44 does not divide by the 8 devices" in out
    assert "a batch of 6 rows does not divide by microbatches = 1 times 8 devices" in out


@pytest.mark.slow
def test_checkpoint_of_one_device_read_by_8(folder, whole_run):
    saved = Checkpointer(RunDir(whole_run))
    assert saved.latest() == 40
    saved.close()
    run_on_devices(8, "tests.train.support.multi_device:lm_restores", folder, whole_run)

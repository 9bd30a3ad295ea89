"""Training of LLaMA-Omni, each stage by the tiny twin of its recipe."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from moshijax import config
from moshijax.errors import ConfigError, DataError
from moshijax.nn.lora import is_update
from moshijax.omni import config as omni
from moshijax.omni import configs, text_model
from moshijax.omni.prompt import SPEECH
from moshijax.omni.training import NONE
from moshijax.omni.whisper import whisper_stack
from moshijax.train import sharding
from moshijax.train.loop import train
from moshijax.train.plan.footprint import footprints
from moshijax.train.run.init_from import starting_point
from moshijax.train.state import plan_state
from moshijax.train.steps import step_flops
from moshijax.weights.omni import save_llama_omni
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from tests.train.support.devices import run_on_devices
from tests.train.support.exchanges import omni_experiment, write_data, write_exchanges
from tests.train.support.models import batches_of, kind_of
from tests.train.test_loop import Crash, assert_bit_equal, at_step, crash, numbers, state_at

STAGES = ("text", "speech", "joint", "lora")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("omni")
    write_data(path)
    return path


@pytest.fixture(scope="module")
def runs(folder):
    """All stages trained, those that come after the first from where their recipe says."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for stage in STAGES:
            train(config.load(f"nano/omni_{stage}.gin"), folder / "runs" / f"omni_{stage}")
    return folder / "runs"


def params_of(runs, stage):
    return flatten_dict(load_run(runs / f"omni_{stage}").params, sep="/")


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_learns(runs, stage):
    lines = read_metrics(runs / f"omni_{stage}" / "metrics.jsonl")
    for name in {"text": ["text"], "lora": ["text"], "speech": ["speech"], "joint": ["text", "speech"]}[stage]:
        found = [line[f"train/{name}/loss"] for line in lines if f"train/{name}/loss" in line]
        assert len(found) == 4 and found[-1] < 0.9 * found[0], name
        assert any(f"eval/{name}/loss" in line for line in lines)
    assert (runs / f"omni_{stage}" / "tokenizer.json").exists()


def test_a_stage_trains_its_parts_alone(runs):
    """The second stage starts from the first and moves the speech decoder; both at once move all but the encoder."""
    first, speech, joint = (params_of(runs, stage) for stage in ("text", "speech", "joint"))
    for found, parts in ((speech, {"decoder"}), (joint, {"adapter", "text", "decoder"})):
        changed = {path for path in first if np.any(found[path] != first[path])}
        assert {path.partition("/")[0] for path in changed} == parts
    lora = params_of(runs, "lora")
    plain = {path for path in lora if path.startswith("text/") and "lora_" not in path}
    assert plain and all(lora[path].dtype == "bfloat16" or "norm" in path for path in plain)
    for path in plain:  # the weights of the first stage, as they were
        np.testing.assert_array_equal(lora[path], np.asarray(first[path]).astype(lora[path].dtype), err_msg=path)
    moved = [path for path in lora if path.endswith("lora_b") and np.any(lora[path])]
    assert len(moved) == 5


def test_a_run_of_updates_is_opened_as_a_plain_model(runs):
    run, opened = load_run(runs / "omni_lora"), open_model(runs / "omni_lora")
    assert run.config.text.lora is not None and opened.config.text.lora is None
    x = jax.random.normal(jax.random.key(0), (1, 5, 32))
    plain = opened.parameters(stacked=True).tree()["text"]
    # The product is added to weights in bfloat16, which rounds it.
    want = text_model.hidden(run.config.with_dtype("float32").text, run.params["text"], x)
    got = text_model.hidden(opened.config.with_dtype("float32").text, plain, x)
    np.testing.assert_allclose(got, want, atol=0.05)
    assert np.abs(got - want).max() < 0.2 * np.abs(want - text_model.hidden(opened.config.text, without(run), x)).max()


def without(run):
    """The weights of a run of updates without them."""
    flat = flatten_dict(run.params["text"], sep="/")
    from flax.traverse_util import unflatten_dict

    return unflatten_dict({path: leaf for path, leaf in flat.items() if "lora_" not in path}, sep="/")


def test_updates_begin_beside_published_weights(folder, tmp_path):
    """As `omni/lora.gin` does: weights of a file, in the types of the recipe, and products that are zero."""
    decoder, context = configs.NANO.decoder, configs.NANO.text.stack.context
    published = {  # the only ones that files can state
        "encoder": dataclasses.replace(configs.NANO.encoder, stack=whisper_stack(64, 1, 1)),
        "adapter": dataclasses.replace(configs.NANO.adapter, input_dim=64, hidden_dim=2048),
        "decoder": dataclasses.replace(decoder, stack=dataclasses.replace(decoder.stack, context=context)),
    }
    model = dataclasses.replace(configs.NANO, **published)
    params = omni.init(model, jax.random.key(3))
    save_llama_omni(model, params, tmp_path / "published")
    experiment = config.load("nano/omni_lora.gin")
    task = dataclasses.replace(experiment.task, model=dataclasses.replace(configs.NANO_LORA, **published))
    experiment = dataclasses.replace(experiment, task=task, init_from=str(tmp_path / "published"))
    mesh = sharding.make_mesh(experiment.mesh)
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        state = starting_point(experiment, experiment.task, plan, mesh)(plan.create(0))
    found = flatten_dict(state.params, sep="/")
    updates = {path for path in found if is_update(path)}
    assert len(updates) == 9 and not any(np.any(found[path]) for path in updates if path.endswith("lora_b"))
    want = flatten_dict(params, sep="/")
    assert set(found) - updates == set(want)
    for path, leaf in want.items():
        np.testing.assert_array_equal(found[path], np.asarray(leaf).astype(found[path].dtype), err_msg=path)


def test_resume_is_bit_for_bit(folder, tmp_path):
    experiment = omni_experiment(folder)
    train(experiment, tmp_path / "whole")
    with pytest.raises(Crash):
        train(experiment, tmp_path / "parts", progress=at_step(6, crash))
    train(experiment, tmp_path / "parts")
    assert_bit_equal(state_at(tmp_path / "whole", 12, experiment), state_at(tmp_path / "parts", 12, experiment))
    assert numbers(tmp_path / "parts") == numbers(tmp_path / "whole")


def test_microbatches_and_padding_change_nothing(folder):
    """The loss is a sum over ids and units of the whole batch, whatever its parts and the room behind them."""
    task = omni_experiment(folder).task
    batch = batches_of(omni_experiment(folder), "exchanges").batch(0)
    params = sharding.unboxed(task.init(jax.random.key(0))[0])

    def loss(batch, whole):
        denominators = task.denominators("joint", whole)
        return jax.jit(lambda p, b: task.loss_parts("joint", p, {}, b, denominators, None).loss)(params, batch)

    want = loss(batch, batch)
    halves = [loss({name: x[rows] for name, x in batch.items()}, batch) for rows in (slice(0, 3), slice(3, 8))]
    np.testing.assert_allclose(sum(halves), want, rtol=1e-5)
    longer = {
        name: x if name == "mel" else np.pad(x, ((0, 0), (0, 9)), constant_values=NONE) for name, x in batch.items()
    }
    np.testing.assert_allclose(loss(longer, longer), want, rtol=1e-5)


def test_states_that_predict_or_read(folder):
    """Spoken are the states before the ids of an answer, or at them; the two options differ by one position."""
    from moshijax.omni import training

    task = omni_experiment(folder).task
    batch = batches_of(omni_experiment(folder), "exchanges").batch(0)
    params = sharding.unboxed(task.init(jax.random.key(0))[0])
    answers = training.read(task.model, params, batch)
    x = training.embed(task.model, params, batch["ids"], batch["mel"])
    hidden = text_model.hidden(task.model.text, params["text"], x)
    for row, first in enumerate(batch["answer"][:, 0]):
        count = (batch["answer"][row] != NONE).sum()
        predicting, reading = (answers.spoken(name)[row, :count] for name in ("predicting", "reading"))
        np.testing.assert_allclose(predicting, hidden[row, first - 1 : first - 1 + count], atol=1e-6)
        np.testing.assert_allclose(reading, hidden[row, first : first + count], atol=1e-6)


def test_what_is_frozen_costs_its_forward_pass_alone(folder):
    def flops(stage):
        experiment = omni_experiment(folder, stage=stage)
        kind, mesh = kind_of(experiment, "exchanges"), sharding.make_mesh(experiment.mesh)
        with sharding.context(mesh):
            plan = plan_state(experiment.task, experiment, mesh)
            return step_flops(experiment.task, kind, plan, experiment.task.batch_shapes(kind, kind.data))

    text, speech, joint = (flops(stage) for stage in ("text", "speech", "joint"))
    assert "decoder" not in text and set(joint) == {"encoder", "adapter", "text", "decoder"}
    assert text["encoder"] == speech["encoder"] == joint["encoder"]
    assert text["text"] > 2.9 * speech["text"] and speech["decoder"] <= joint["decoder"]


def test_a_plan_names_every_part(folder):
    experiment = omni_experiment(folder)
    (found,) = footprints(experiment, sharding.make_mesh(experiment.mesh))
    assert found.peak > found.parameters > 0 and found.amounts == {"answers": 8.0, "tokens": 8.0 * 144}
    assert [setting for setting, _, _ in experiment.task.memory_savings()] == [
        "model.text.stack.remat_policy='full'",
        "model.decoder.stack.remat_policy='full'",
    ]


@pytest.mark.slow
def test_meshes_agree(folder):
    run_on_devices(8, "tests.train.support.multi_device:omni_meshes_agree", folder)


@pytest.mark.parametrize("stage", STAGES)
def test_each_twin_differs_from_its_recipe_in_size_alone(stage):
    small, full = config.load(f"nano/omni_{stage}.gin"), config.load(f"omni/{stage}.gin")
    assert (small.task.stage, small.task.states) == (full.task.stage, full.task.states)
    sizes = dict(batch_size=1, num_tokens=99, answer_tokens=1, num_units=1)
    for field in ("data", "eval_data"):
        ours, theirs = (dataclasses.replace(getattr(made.task.exchanges, field), **sizes) for made in (small, full))
        assert ours == theirs
    groups = [[(g.name, g.pattern, g.frozen) for g in made.optimizer.groups] for made in (small, full)]
    assert groups[0] == groups[1]


def test_the_prompt_stands_around_the_speech(folder):
    experiment = omni_experiment(folder)
    batch = batches_of(experiment, "exchanges").batch(0)
    assert ((batch["ids"] == SPEECH).sum(1) == 16).all() and batch["mel"].shape == (8, 160, 80)
    trimmed = dataclasses.replace(experiment.task.exchanges.data, trim=True)
    kind = kind_of(experiment, "exchanges")
    rows = (experiment.task.batches(kind, trimmed, 0).batch(0)["ids"] == SPEECH).sum(1)
    assert rows.min() == 7 and rows.max() <= 12  # of 0.78 to 1.17 s


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"model": dataclasses.replace(configs.NANO, encoder=dataclasses.replace(configs.NANO.encoder, mels=128))},
         DataError, "has frames of 80 bands, the encoder takes 128: prepare it with --bands 128"),
        ({"model": dataclasses.replace(configs.NANO, decoder=dataclasses.replace(configs.NANO.decoder, units=30))},
         DataError, "has 20 units, the speech decoder 30"),
        ({"model": dataclasses.replace(configs.NANO, text=dataclasses.replace(configs.NANO.text, vocab=100))},
         DataError, "has ids up to 259, the text model has 100; use the tokenizer of the text model"),
        ({"system": "x" * 200}, DataError, "fits: 24 have prompt and answer of more than num_tokens=144"),
        ({"speech_weight": 0.0}, ConfigError, "speech_weight is 0.0; it must be more than 0"),
        ({"stage": "speech", "train_encoder": True}, ConfigError, "train_encoder in the stage 'speech'"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said_before_the_first_step(folder, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(omni_experiment(folder, **changes), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_exchanges_that_do_not_fit_are_counted(folder, tmp_path, caplog):
    experiment = omni_experiment(folder)
    kind = kind_of(experiment, "exchanges")
    short = dataclasses.replace(kind.data, answer_tokens=5)  # "green" and the id that ends it are six
    with caplog.at_level("WARNING", "moshijax"):
        found = experiment.task.batches(kind, short, 0)
    assert found.items == 19 and "5 exchanges with an answer of more than answer_tokens=5" in caplog.text


def test_other_centroids_are_no_continuation(runs, folder, tmp_path):
    write_exchanges(tmp_path / "train", centroids="1" * 64)
    experiment = omni_experiment(folder, stage="speech")
    data = dataclasses.replace(experiment.task.exchanges.data, paths=(str(tmp_path / "train"),))
    task = dataclasses.replace(experiment.task, exchanges=dataclasses.replace(experiment.task.exchanges, data=data))
    changed = dataclasses.replace(experiment, task=task, init_from=str(runs / "omni_text"))
    with pytest.raises(
        DataError, match="has a units with the sha256 000000000000.*prepare the data with the centroids"
    ):
        train(changed, tmp_path / "run")

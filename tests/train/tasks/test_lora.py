"""Training of low-rank updates beside weights that stay as they are."""

from __future__ import annotations

import dataclasses

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from moshijax import lm, weights
from moshijax.export.artifact import build
from moshijax.nn.layout import unstack_layers
from moshijax.testing.tiny import CODEC, PIECES, tiny_models
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.loop import train
from moshijax.train.optimizer import OptimizerConfig, ParameterGroup
from moshijax.train.state import plan_state
from moshijax.train.steps import step_flops
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from moshijax.weights.transfer import export_weights
from tests.train.support.devices import run_on_devices
from tests.train.support.models import LM, NOTHING, kind_of, lm_experiment, write_lm_data

#: As a recipe has it: everything that is no update is frozen.
BASE = ParameterGroup("base", "^(?!.*lora_[ab]$)", frozen=True)
MODULES = ("temporal/attention/*", "temporal/mlp/*", "depth/*", "text_head")


def lora_experiment(folder, text=NOTHING, **fields) -> ExperimentConfig:
    plain = lm_experiment(folder, text=text, steps=4, log_every=2, checkpoint_every=4)
    model = dataclasses.replace(LM, lora=lm.LoRA(4, modules=MODULES))
    return dataclasses.replace(
        plain,
        task=dataclasses.replace(plain.task, model=model),
        # Adam's steps do not depend on the size of a gradient; only its eps makes that of a vanishing one vanish. With
        # a tiny eps the sign of its rounding, which differs between meshes, would decide.
        optimizer=OptimizerConfig(learning_rate=3e-2, decay="constant", eps=1e-3, groups=(BASE,)),
        **fields,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("lora")
    write_lm_data(path)
    return path


@pytest.fixture(scope="module")
def tuned(folder):
    """A base with random weights, the run of updates that starts from it, and the published form of that."""
    train(lm_experiment(folder, steps=1, text=None, log_every=1), folder / "base")
    train(lora_experiment(folder, init_from=str(folder / "base")), folder / "run")
    export_weights(open_model(folder / "run"), folder / "published", "kyutai")
    return folder / "run"


def test_only_the_updates_are_trained_and_have_moments(folder, tuned):
    experiment = lora_experiment(folder)
    plan = plan_state(experiment.task, experiment, sharding.make_mesh(experiment.mesh))
    for optimizer in plan.optimizers.values():
        assert optimizer.paths and all(path.endswith(("lora_a", "lora_b")) for path in optimizer.paths)
    sizes = {path: leaf.size for path, leaf in flatten_dict(plan.abstract.params, sep="/").items()}
    updates = sum(size for path, size in sizes.items() if "lora_" in path)
    moments = [leaf for leaf in jax.tree.leaves(plan.abstract.opt_states["audio"]) if leaf.ndim]
    assert sum(leaf.size for leaf in moments) == 2 * updates
    base = flatten_dict(load_run(folder / "base").params, sep="/")
    trained = flatten_dict(load_run(tuned).params, sep="/")
    for path, leaf in trained.items():
        if path in base:
            np.testing.assert_array_equal(leaf, base[path], err_msg=path)
        elif path.endswith("lora_b"):
            assert np.any(leaf), path
    lines = read_metrics(tuned / "metrics.jsonl")
    assert lines[-1]["train/loss"] < lines[0]["train/loss"]


def test_gradients_of_the_frozen_weights_are_not_computed(folder):
    experiment = lora_experiment(folder)
    kind = kind_of(experiment, "audio")
    batch = experiment.task.batch_shapes(kind, kind.data)

    def flops(experiment):
        mesh = sharding.make_mesh(experiment.mesh)
        with sharding.context(mesh):
            plan = plan_state(experiment.task, experiment, mesh)
            return sum(step_flops(experiment.task, kind, plan, batch).values())

    everything = dataclasses.replace(experiment, optimizer=OptimizerConfig())
    # Of the three products of a frozen map one is not needed; those of the updates are small but for this model.
    assert flops(experiment) < 0.85 * flops(everything)


def test_merged_and_apart_and_published_are_one_function(folder, tuned):
    _, config, params, *_ = load_run(tuned)
    assert config.lora.modules == MODULES
    codes = np.random.RandomState(0).randint(4, 30, (2, LM.layout.num_streams, 12)).astype(np.int32)
    want = jax.jit(lm.forward, static_argnums=0)(config, params, codes)
    found = [weights.load_lm(tuned, stacked=True), weights.load_lm(folder / "published", stacked=True)]
    assert all(each.lora is None for each, _ in found)
    for each, tree in found:
        got = jax.jit(lm.forward, static_argnums=0)(each, tree, codes)
        np.testing.assert_allclose(got.logits, want.logits, atol=1e-4)
        np.testing.assert_allclose(got.text_logits, want.text_logits, atol=1e-4)
    again, pairs = weights.load_lm(folder / "published", merge_adapter=False, stacked=True)
    assert again.lora.rank == 4
    flat, pairs = flatten_dict(params, sep="/"), flatten_dict(pairs, sep="/")
    assert {path for path in flat if "lora_" in path} == {path for path in pairs if "lora_" in path}
    for path, leaf in pairs.items():
        np.testing.assert_array_equal(leaf, flat[path], err_msg=path)


def test_single_layers_are_frozen_or_trained_whole(folder, tuned, tmp_path):
    """With layers of their own (`scan_layers` off): nothing of the first is trained, all of the last one's MLP is."""
    groups = (
        ParameterGroup("first", "^temporal/layers_0/", frozen=True),
        ParameterGroup("last", "^temporal/layers_1/mlp/"),
        BASE,
    )
    experiment = lora_experiment(folder, init_from=str(folder / "base"), text=None)
    model = dataclasses.replace(experiment.task.model, scan_layers=False)
    experiment = dataclasses.replace(
        experiment,
        task=dataclasses.replace(experiment.task, model=model),
        optimizer=dataclasses.replace(experiment.optimizer, groups=groups),
    )
    train(experiment, tmp_path / "run")
    _, config, params, *_ = load_run(tmp_path / "run")
    trained = flatten_dict(params, sep="/")
    base = flatten_dict(unstack_layers(load_run(folder / "base").params, ("layers",)), sep="/")
    changed = {path for path in base if np.any(trained[path] != base[path])}
    assert changed == {path for path in base if path.startswith("temporal/layers_1/mlp/")}
    moved = {path for path in trained if path.endswith("lora_b") and np.any(trained[path])}
    still = {path for path in trained if path.endswith("lora_b")} - moved
    assert still and all(path.startswith("temporal/layers_0/") for path in still)
    assert any(path.startswith("temporal/layers_1/attention/") for path in moved) and "text_head/lora_b" in moved
    plan = plan_state(experiment.task, experiment, sharding.make_mesh(experiment.mesh))
    assert not any(path.startswith("temporal/layers_0/") for path in plan.optimizers["audio"].paths)
    export_weights(open_model(tmp_path / "run"), tmp_path / "published", "kyutai")
    codes = np.random.RandomState(0).randint(4, 30, (2, LM.layout.num_streams, 12)).astype(np.int32)
    want = jax.jit(lm.forward, static_argnums=0)(config, params, codes)
    merged, whole = weights.load_lm(tmp_path / "published", stacked=True)
    got = jax.jit(lm.forward, static_argnums=0)(merged, whole, codes)
    np.testing.assert_allclose(got.logits, want.logits, atol=1e-4)
    np.testing.assert_allclose(got.text_logits, want.text_logits, atol=1e-4)


def test_an_artifact_of_a_run_of_updates(tuned, tmp_path):
    from moshijax import runtime

    (codec_config, codec_params), _, _ = tiny_models()
    assert codec_config == CODEC
    made = build((codec_config, codec_params), weights.load_lm(tuned), PIECES[: LM.text_card], tmp_path / "artifact")
    rows = runtime.Rows(runtime.load(made), 1, prompts=False)
    rows.open(runtime.CallOptions(seed=1))
    frames = [rows.step(np.zeros((1, rows.artifact.frame_size), np.float32)) for _ in range(6)]
    assert frames[-1].ready.all() and np.isfinite(frames[-1].pcm).all()


@pytest.mark.slow
def test_an_adapter_of_8_devices_is_whole(folder, tuned, tmp_path):
    run_on_devices(8, "tests.train.support.multi_device:lora_trains", folder, tmp_path / "run")
    export_weights(open_model(tmp_path / "run"), tmp_path / "published", "kyutai")
    one, eight = (
        weights.load_lm(path / "published", merge_adapter=False, stacked=True)[1] for path in (folder, tmp_path)
    )
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-3, atol=2e-5), eight, one)

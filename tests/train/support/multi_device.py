"""Bodies of the tests that need several devices; each runs in a process of its own (see devices.py)."""

from __future__ import annotations

import dataclasses
import re
from itertools import product
from math import prod
from pathlib import Path

import jax
import numpy as np

from moshijax import config
from moshijax.data import GridData, TextData
from moshijax.errors import ConfigError
from moshijax.train import sharding
from moshijax.train.experiment import ExperimentConfig, MeshConfig
from moshijax.train.feed import put
from moshijax.train.loop import train
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.run.checkpoint import Checkpointer
from moshijax.train.run.run_dir import RunDir
from moshijax.train.state import plan_state
from moshijax.train.steps import batch_shardings, loss_and_gradients, lower_step, step_key
from moshijax.train.tasks.lm import AudioSteps, LMTask, TextSteps
from moshijax.train.tasks.omni import OmniTask
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from tests.programs import exchanges
from tests.train.support.exchanges import omni_experiment
from tests.train.support.models import LM, batches_of, kind_of, lm_experiment
from tests.train.support.small_task import SmallData, SmallTask, with_task

MESHES = (
    MeshConfig(data=8),
    MeshConfig(data=1, fsdp=8),
    MeshConfig(data=1, tensor=8),
    MeshConfig(data=2, fsdp=2, tensor=2),
    MeshConfig(data=4, fsdp=1, tensor=2),
)
SMALL = ExperimentConfig(
    task=SmallTask(text_data=SmallData(seed=1), text_share=0.3),
    optimizer=OptimizerConfig(learning_rate=1e-2),
    steps=12,
    log_every=1,
    checkpoint_every=6,
)


def loss_and_gradients_on(experiment, kind, mesh_config, devices):
    """Loss and gradients of the first batch of a kind of steps on some devices, as host arrays."""
    mesh = sharding.make_mesh(mesh_config, devices)
    task = experiment.task
    batch, update = batches_of(experiment, kind).batch(0), kind_of(experiment, kind).updates[-1].name
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        state = plan.create(experiment.seed)
        where = batch_shardings(batch, mesh, experiment.microbatches)

        def run(params, model_state, batch):
            key = step_key(experiment.seed, kind, 0)
            count = experiment.microbatches
            parts, grads = loss_and_gradients(task, update, params, lambda p: p, model_state, batch, key, count)
            return parts.loss, grads

        jitted = jax.jit(run, out_shardings=(None, plan.shardings.params))
        return jax.device_get(jitted(state.params, state.model_state, put(batch, where)))


def relative(one, two):
    """Largest difference of two trees, relative to the largest value of each leaf."""
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(two), strict=True)
    return max(float(np.abs(a - b).max() / max(np.abs(b).max(), 1e-30)) for a, b in pairs)


def compare_meshes(experiment, kinds, meshes=MESHES, tolerance=1e-5):
    for kind in kinds:
        one = loss_and_gradients_on(experiment, kind, MeshConfig(), jax.devices()[:1])
        for mesh in meshes:
            devices = jax.devices()[: prod(dataclasses.astuple(mesh))]
            error = relative(loss_and_gradients_on(experiment, kind, mesh, devices), one)
            print(kind, mesh, f"{error:.1e}")
            assert error <= tolerance, (kind, mesh, error)


def every_mesh() -> list[MeshConfig]:
    """All ways to lay 2, 4 or 8 devices over data, fsdp and tensor."""
    sizes = (1, 2, 4, 8)
    return [MeshConfig(*shape) for shape in product(sizes, sizes, sizes) if prod(shape) in sizes[1:]]


def small_agrees_with_one_device():
    compare_meshes(SMALL, ("audio", "text"), every_mesh())
    several = dataclasses.replace(with_task(SMALL, data=SmallData(rows=16)), microbatches=2)
    compare_meshes(several, ("audio",), MESHES[:1])


def constraints_of_the_model(experiment) -> int:
    """Sharding constraints in the lowered audio step that come from the rule table."""
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    kind, batch = kind_of(experiment, "audio"), batches_of(experiment, "audio").batch(0)
    found = []
    for rules in (sharding.RULES, ()):
        with sharding.context(mesh, rules):
            plan = plan_state(experiment.task, experiment, mesh)
            lowered = lower_step(experiment.task, experiment, plan, kind, batch, mesh)
        found.append(len(re.findall(r"sdy\.sharding_constraint|@Sharding", lowered.as_text())))
    print("constraints with and without the table:", found)
    return found[0] - found[1]


def small_has_its_constraints():
    """The model of the small task has one constraint; its gradient has it too."""
    assert constraints_of_the_model(SMALL) == 2
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with sharding.context(mesh):
        plan = plan_state(SMALL.task, SMALL, mesh)
    assert plan.abstract.params["first"]["kernel"].sharding.spec == jax.sharding.PartitionSpec("tensor", "fsdp")
    moments = [leaf for leaf in jax.tree.leaves(plan.abstract.opt_states["audio"]) if leaf.shape == (32, 16)]
    assert len(moments) == 2 and all(m.sharding.spec == jax.sharding.PartitionSpec("tensor", "fsdp") for m in moments)


def trains_like_one_device(one_device_run, folder):
    """A run of a one-device process, again on 8 devices."""
    for number, mesh in enumerate(MESHES[2:4]):
        run_dir = Path(folder) / str(number)
        train(dataclasses.replace(SMALL, mesh=mesh), run_dir)
        ours, theirs = (read_metrics(Path(path) / "metrics.jsonl") for path in (run_dir, one_device_run))
        for a, b in zip(ours, theirs, strict=True):
            for name in a.keys() & {"train/loss", "train_text/loss", "train/grad_norm", "train/error"}:
                np.testing.assert_allclose(a[name], b[name], rtol=1e-5)


def restores_a_checkpoint_of_one_device(run_dir):
    """Bit-equal values on any topology, laid out as the mesh says."""
    checkpointer = Checkpointer(RunDir(Path(run_dir)))
    found = []
    for mesh_config in MESHES[1:4:2]:
        mesh = sharding.make_mesh(mesh_config)
        with sharding.context(mesh):
            plan = plan_state(SMALL.task, SMALL, mesh)
            state, _ = checkpointer.restore(12, plan.abstract)
        jax.tree.map(
            lambda leaf, where: leaf.sharding.is_equivalent_to(where, leaf.ndim) or 1 / 0, state, plan.shardings
        )
        found.append(jax.device_get(state))
    for other in found[1:]:
        jax.tree.map(np.testing.assert_array_equal, found[0], other)


def writes_a_checkpoint(run_dir):
    train(dataclasses.replace(SMALL, mesh=MeshConfig(data=2, fsdp=2, tensor=2)), run_dir)


def refuses_what_does_not_divide():
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=8))
    for rows, microbatches, remedy in ((12, 1, "use a"), (16, 4, "use microbatches=2, or a")):
        try:
            batch_shardings({"x": np.zeros((rows, 3))}, mesh, microbatches)
        except ConfigError as error:
            assert f"a batch of {rows} rows does not divide by microbatches = {microbatches} times 8" in str(error)
            assert f"{remedy} batch size that is a multiple of {8 * microbatches}" in str(error)
        else:
            raise AssertionError(f"{rows} rows in {microbatches} microbatches on 8 devices were accepted")
    batch_shardings({"x": np.zeros((16, 3))}, mesh, 2)


def lm_agrees_with_one_device(folder):
    """Every combination of axes on 2, 4 and 8 devices. A step of this size is all compilation."""
    jax.config.update("jax_disable_most_optimizations", True)
    experiment = lm_experiment(Path(folder))
    compare_meshes(experiment, ("audio",), every_mesh())
    compare_meshes(experiment, ("text",), (MeshConfig(2, 2, 2),))
    # Of four look-ups the ids and what is found, of a sum of embeddings both its layouts, two in the temporal layer,
    # which is scanned, and one in the depth transformer; all but those of ids forward and backward.
    assert constraints_of_the_model(experiment) == 4 + 2 * (4 + 2 + 2 + 1)


def lm_options_agree_with_one_device(folder):
    """Logits in pieces, the depth transformer on some frames, layers computed twice, microbatches."""
    jax.config.update("jax_disable_most_optimizations", True)
    experiment = lm_experiment(Path(folder), microbatches=2)
    model = experiment.task.model
    temporal = dataclasses.replace(model.temporal, remat_policy="full")
    task = dataclasses.replace(
        experiment.task,
        model=dataclasses.replace(model, temporal=temporal),
        loss=dataclasses.replace(experiment.task.loss, frames_at_once=3),
        depth_share=0.5,
    )
    several = dataclasses.replace(experiment, task=task)
    compare_meshes(several, ("audio",), (MeshConfig(2, 2, 1), MeshConfig(1, 2, 2)))
    # All but the choice of frames change nothing at all on one device.
    plain = dataclasses.replace(several, task=dataclasses.replace(task, depth_share=1.0))
    one, two = (
        loss_and_gradients_on(e, "audio", MeshConfig(), jax.devices()[:1]) for e in (plain, lm_experiment(Path(folder)))
    )
    assert relative(one, two) <= 1e-5


def lm_adds_embeddings_before_they_travel():
    """One sum per frame goes to where its row is computed, and its gradient back; text steps look up no audio."""
    audio = GridData(("none",), batch_size=8, num_frames=16)
    texts = TextData(("none",), batch_size=8, num_frames=16)
    experiment = ExperimentConfig(task=LMTask(LM, "none", AudioSteps(audio), TextSteps(texts, share=0.5)))
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    for name in ("audio", "text"):
        compiled = compiled_step(experiment, name, mesh)
        found = [one for one in exchanges(compiled) if "LanguageModel.embed" in one.name]
        print(name, found)
        rows, heard = audio.batch_size // 2, audio.num_frames if name == "audio" else 1 + LM.layout.max_delay
        ids = [one for one in found if one.kind == "all-gather"]
        assert sum(one.values for one in ids) == rows * (audio.num_frames + LM.layout.n_q * heard)
        # Gradients of tables are summed over `data`, as all are.
        found = [one.values for one in found if one not in ids and one.kind != "all-reduce"]
        assert found == [rows // 2 * audio.num_frames * LM.temporal.dim] * 2


def lm_gathers_kernels_once_per_pass():
    """Kernels of layers lie in whole rows; what a layer computes again and its gradient share what is gathered."""
    temporal, depth = (
        dataclasses.replace(stack, remat_policy="full", dtype="bfloat16")
        for stack in (LM.temporal, LM.depth.transformer)
    )
    model = dataclasses.replace(LM, temporal=temporal, depth=dataclasses.replace(LM.depth, transformer=depth))
    audio = AudioSteps(GridData(("none",), batch_size=8, num_frames=16))
    experiment = ExperimentConfig(task=LMTask(model, "none", audio))
    mesh = sharding.make_mesh(MeshConfig(data=1, fsdp=4, tensor=2))
    with sharding.context(mesh):
        params = plan_state(experiment.task, experiment, mesh).abstract.params
    for stack in (params["temporal"], params["depth"]):
        for leaf in jax.tree.leaves(stack["layers"]):
            spec = leaf.sharding.spec
            assert leaf.ndim < 3 or ("fsdp" in str(spec[-2]) and "fsdp" not in str(spec[-1])), spec
    found = exchanges(compiled_step(experiment, "audio", mesh))
    gathered = [one.name for one in found if one.kind == "all-gather" and "temporal/while/body" in one.name]
    print(*sorted(gathered), sep="\n")
    backward = [name for name in gathered if "transpose(" in name]
    assert len(backward) == 5 and len(gathered) == 10  # q, k and v; out; gate, up and down


def compiled_step(experiment, name, mesh) -> str:
    """The program of a step on the devices of a mesh, which is not run."""
    task, kind = experiment.task, kind_of(experiment, name)
    with sharding.context(mesh):
        plan = plan_state(task, experiment, mesh)
        lowered = lower_step(task, experiment, plan, kind, task.batch_shapes(kind, kind.data), mesh)
        return lowered.compile().as_text()


def compiles_a_recipe(recipe, *mesh):
    """Every kind of step of a full-size recipe, of two layers, on its mesh. XLA says what it can only move whole."""
    jax.config.update("jax_disable_most_optimizations", True)
    experiment = config.load(recipe)
    experiment = dataclasses.replace(experiment, mesh=MeshConfig(*map(int, mesh)))
    if isinstance(experiment.task, LMTask):
        model = experiment.task.model
        temporal, depth = dataclasses.replace(model.temporal, num_layers=2), model.depth
        if depth is not None:
            depth = dataclasses.replace(depth, transformer=dataclasses.replace(depth.transformer, num_layers=2))
        experiment = with_task(experiment, model=dataclasses.replace(model, temporal=temporal, depth=depth))
    if isinstance(experiment.task, OmniTask):
        model = experiment.task.model
        parts = {name: getattr(model, name) for name in ("encoder", "text", "decoder")}
        for name, part in parts.items():
            parts[name] = dataclasses.replace(part, stack=dataclasses.replace(part.stack, num_layers=2))
        experiment = with_task(experiment, model=dataclasses.replace(model, **parts))
    for kind in experiment.step_kinds:
        found = exchanges(compiled_step(experiment, kind.name, sharding.make_mesh(experiment.mesh)))
        print(kind.name, len(found), "exchanges")


def omni_meshes_agree(folder):
    """Loss and gradients of both losses at once on every mesh that the tiny model divides by."""
    experiment = omni_experiment(Path(folder))
    meshes = (MeshConfig(data=8), MeshConfig(data=1, fsdp=8), MeshConfig(data=2, fsdp=2, tensor=2))
    compare_meshes(experiment, ("exchanges",), meshes)


def lm_refuses_indivisible(folder):
    experiment = lm_experiment(Path(folder), mesh=MeshConfig(data=1, tensor=8))
    task = dataclasses.replace(experiment.task, model=dataclasses.replace(LM, text_card=44))
    rows = dataclasses.replace(experiment.task.text.data, batch_size=6)
    held_out = dataclasses.replace(experiment.task.text, eval_data=rows)
    run_dir = Path(folder) / "indivisible"
    for bad in (
        dataclasses.replace(experiment, task=task),
        dataclasses.replace(with_task(experiment, text=held_out), mesh=MeshConfig(data=8)),
    ):
        try:
            train(bad, run_dir)
        except ConfigError as error:
            assert not run_dir.exists()
            print(error)
        else:
            raise AssertionError("the mesh was accepted")


def lm_restores(folder, run_dir):
    experiment = lm_experiment(Path(folder), steps=40)
    checkpointer = Checkpointer(RunDir(Path(run_dir)))
    alone = load_run(run_dir, 40).params
    mesh = sharding.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        state, _ = checkpointer.restore(40, plan.abstract)
    assert not state.params["temporal"]["layers"]["mlp"]["up"]["kernel"].sharding.is_fully_replicated
    jax.tree.map(np.testing.assert_array_equal, jax.device_get(state.params), jax.device_get(alone))


def codebooks_agree_with_one_device(folder):
    """20 steps of the whole quantiser training on 1 and on 8 devices: k-means, moving averages, replacements.

    With a large eps of the optimiser: Adam's division turns rounding of tiny gradients into steps of full length, and
    what the codebooks see would no longer be the same.
    """
    from moshijax.codec.quantizer_training import QuantizerTraining
    from tests.train.support.models import codec_experiment

    experiment = codec_experiment(Path(folder))
    experiment = dataclasses.replace(experiment, optimizer=dataclasses.replace(experiment.optimizer, eps=1e-3))
    settings = experiment.task.quantizer
    assert settings.dropout and settings.quantization_rate == QuantizerTraining().quantization_rate == 0.5
    one, eight = (
        _state_after(experiment, 20, mesh, devices)
        for mesh, devices in ((MeshConfig(), jax.devices()[:1]), (MeshConfig(data=8), jax.devices()))
    )
    books, others = (state.model_state["quantizer"] for state in (one, eight))
    for name, book in books.items():
        assert book["initialized"].all()
        for leaf in ("embedding_sum", "cluster_usage"):
            error = relative(others[name][leaf], book[leaf])
            print(name, leaf, f"{error:.1e}")
            assert error <= 1e-4, (name, leaf, error)


def _state_after(experiment, steps, mesh_config, devices):
    """State of a run after some steps on some devices, on the host."""
    mesh = sharding.make_mesh(mesh_config, devices)
    kind, source = kind_of(experiment, "audio"), batches_of(experiment, "audio")
    with sharding.context(mesh):
        plan = plan_state(experiment.task, experiment, mesh)
        state = plan.create(experiment.seed)
        where = batch_shardings(source.batch(0), mesh, 1)
        step = lower_step(experiment.task, experiment, plan, kind, source.batch(0), mesh).compile()
        for n in range(steps):
            state, _ = step(state, put(source.batch(n), where))
    return jax.device_get(state)


def lora_trains(folder, run_dir):
    from tests.train.tasks.test_lora import lora_experiment

    mesh = MeshConfig(data=2, fsdp=2, tensor=2)
    train(lora_experiment(Path(folder), init_from=str(Path(folder) / "base"), mesh=mesh), Path(run_dir))

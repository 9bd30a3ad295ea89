"""The training loop: one fixed order, written once.

For n = start, start + 1, ...: stop if a signal asked for it; maybe evaluate; maybe checkpoint; dispatch step n; log
step n - 1. The device always has the next step before the host looks at the last one, and nothing else makes it wait.
After the last step: evaluate, checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import jax

from moshijax.config_json import to_json
from moshijax.errors import ConfigError, Stopped
from moshijax.train import sharding
from moshijax.train.evaluate import Evaluator, HeldOutLoss, Interrupted, Snapshot
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.feed import Feed, StepBatch
from moshijax.train.plan.flops import peak_flops
from moshijax.train.plan.footprint import explain_out_of_memory
from moshijax.train.run import hosts
from moshijax.train.run import run_dir as files
from moshijax.train.run.checkpoint import Checkpointer, check_path, quiet_orbax
from moshijax.train.run.compilations import Compilations
from moshijax.train.run.init_from import starting_point
from moshijax.train.run.metrics import (
    Clock,
    MetricsLog,
    MetricSums,
    MetricsWriter,
    PackedSums,
    peak_memory,
    readable,
    readable_evaluation,
)
from moshijax.train.run.nonfinite import NonFiniteSteps, TooManyNonFinite
from moshijax.train.run.profile import Profiler
from moshijax.train.run.run_dir import RunDir, RunIdentity
from moshijax.train.run.signals import StopSignal, StopVote
from moshijax.train.run.weights_and_biases import WandbLog
from moshijax.train.state import StatePlan, TrainState, plan_state
from moshijax.train.steps import NONFINITE, CompiledStep, batch_shardings, compile_step
from moshijax.train.task import Batches
from moshijax.weights.run import DamagedCheckpoint

log = logging.getLogger(__name__)

# Called after every step with (steps done, all steps, values of the line or {} between lines).
Progress = Callable[[int, int, Mapping[str, float]], None]


class Reporter(Protocol):
    """What writes a page about the run from the files in its directory."""

    def write(self) -> None:
        """Write it soon; the run does not wait."""
        ...

    def close(self) -> None:
        """Write the last version, with everything."""
        ...


def _loop(run: _Run, state: TrainState, start: int, feed: Feed) -> None:
    experiment = run.experiment
    pending: tuple[int, StepBatch, PackedSums] | None = None
    question: jax.Array | None = None

    def settle() -> None:
        nonlocal pending
        last, pending = pending, None
        if last is not None:
            run.log(*last)
            run.stop.hear(question)

    step = start
    try:
        if run.stop.now():
            raise Interrupted
        for step in range(start, experiment.steps):
            if run.stop.reached:
                settle()
                raise Interrupted
            if step > 0 and step % experiment.eval_every == 0:
                settle()
                run.evaluate(state, step)
            if step > start and step % experiment.checkpoint_every == 0:
                settle()
                run.save(state, step)
            if run.profiler.changes(step):
                settle()
                with jax.transfer_guard("allow"), run.clock.hold("profile"):
                    run.profiler.switch(step)
            batch = feed.get(step)
            run.clock.wait(batch.waited)
            with jax.profiler.StepTraceAnnotation(batch.kind, step_num=step):
                state, packed = run.steps[batch.kind].run(state, batch.arrays)
            settle()
            pending, question = (step, batch, packed), run.stop.ask()
        settle()
        step = experiment.steps
        run.evaluate(state, step)
    except Interrupted:
        _stop(run, state, step, start)
    except TooManyNonFinite:
        _stop_non_finite(run, state)
    run.save(state, experiment.steps)
    run.checkpointer.wait()


@dataclass
class _Run:
    """One process's part of a run: what the loop needs, put together before the first step.

    Attributes:
      steps, batches: by kind of step; `batches` by name of the held-out ones too.
      peak: FLOP/s of all devices.
      evaluated: step of the last complete evaluation.
    """

    experiment: ExperimentConfig
    files: RunDir
    steps: dict[str, CompiledStep]
    batches: dict[str, Batches]
    checkpointer: Checkpointer
    writer: MetricsWriter
    evaluators: Sequence[Evaluator]
    progress: Progress
    sums: MetricSums
    peak: float
    compilations: Compilations
    profiler: Profiler
    reporter: Reporter | None
    stop: StopVote
    evaluated: int
    clock: Clock = field(default_factory=Clock)
    nonfinite: NonFiniteSteps = field(default_factory=NonFiniteSteps)

    def save(self, state: TrainState, step: int) -> None:
        with jax.transfer_guard("allow"), self.clock.hold("save"):
            meta = {"step": step, "interval": self.sums.save(), "evaluated": self.evaluated}
            self.checkpointer.save(state, step, {**meta, "lines": self.writer.lines})

    def evaluate(self, state: TrainState, step: int) -> None:
        """Run the evaluators on the state after `step` steps, unless that was done before the run was stopped.

        Raises:
          Interrupted: a signal asked the run to stop.
        """
        if self.evaluated == step:
            return
        config = self.experiment.task.model_config()
        snapshot = Snapshot(step, config, state.ema or state.params, state.model_state)
        values: dict[str, float] = {}
        with jax.transfer_guard("allow"), self.clock.hold("evaluate"), self.compilations.paused():
            for evaluator in self.evaluators:
                if self.stop.now():
                    raise Interrupted
                values |= evaluator(snapshot)
        self.evaluated = step
        if values:
            self.writer.write(step, values)
            log.info("%s", readable_evaluation(step, values))

    def log(self, step: int, batch: StepBatch, packed: PackedSums) -> None:
        """Take in the metrics of a step (this waits for it).

        Raises:
          TooManyNonFinite: it was the third step in a row that was not finite.
        """
        experiment, compiled = self.experiment, self.steps[batch.kind]
        sums = packed.unpack()
        done = step + 1
        in_a_row = int(sums.pop(NONFINITE)[0])
        self.clock.step(compiled.flops, experiment.task.amounts(compiled.kind, batch.arrays))
        if in_a_row:
            self.sums.add("skipped", {"steps": (1.0, 1.0)})
            self.nonfinite.add(step, batch, in_a_row)
        else:
            self.sums.add(compiled.kind.train_name, sums)
        values: dict[str, float] = {}
        if done % experiment.log_every == 0 or done == experiment.steps:
            values = self.sums.means() | self.clock.values(experiment.steps - done, self.peak)
            values |= self.compilations.values(done) | peak_memory() | self._skipped()
            self.sums.clear()
            self.writer.write(done, values)
            log.info("%s", readable(done, experiment.steps, values))
        if done % experiment.report_every == 0 and self.reporter is not None:
            self.reporter.write()
        self.progress(done, experiment.steps, values)

    def _skipped(self) -> dict[str, float]:
        """Count recordings that this process could not use since it began; their names and reasons are in the log."""
        skipped = sum(len(batches.skipped) for batches in self.batches.values())
        return {"data/skipped_recordings": float(skipped)} if skipped else {}


def _stop(run: _Run, state: TrainState, step: int, start: int) -> None:
    if step == start:
        raise Stopped(f"stopped by {run.stop.name} before the first step; the same command starts again")
    run.save(state, step)
    run.checkpointer.wait()
    raise Stopped(f"stopped by {run.stop.name} after {step} steps, which are saved; the same command continues")


def _stop_non_finite(run: _Run, state: TrainState) -> None:
    done = int(jax.device_get(state.step))
    if jax.process_index() == 0:
        run.nonfinite.write(run.files.path)
    run.save(state, done)
    run.checkpointer.wait()
    raise run.nonfinite.error(run.files.path)


def train(
    experiment: ExperimentConfig,
    run_dir: str | Path,
    *,
    evaluators: Sequence[Evaluator] = (),
    recipe: str | None = None,
    progress: Progress = lambda done, steps, values: None,
    reporter: Reporter | None = None,
    allow_change: bool = False,
    lost_after: float = hosts.LOST_AFTER,
) -> None:
    """Train, or resume from the run directory's last complete checkpoint.

    With several processes (`moshijax.train.run.hosts.join`) each calls this with the same arguments and a run directory
    that all of them see. A process that fails, or learns that another one is lost, then ends at once: see
    `hosts.Heartbeat`.

    Args:
      evaluators: run every `eval_every` steps and at the end, besides the losses on held-out batches.
      recipe: gin text of the whole experiment, kept in the run directory.
      progress: called after every step.
      reporter: asked for a page every `report_every` steps and at the end, on the first process alone
        (`moshijax.report.run.PageWriter`).
      allow_change: continue although the recipe or the data is not that of the run; what changed is logged.
      lost_after: seconds of silence after which another process counts as lost.

    Raises:
      ConfigError: an impossible experiment, or a run directory of another one.
      DataError: data or a checkpoint that cannot be used.
      Stopped: SIGTERM or SIGINT; a checkpoint of the last step boundary is complete.
      MoshijaxError: three non-finite steps in a row, a full disk, or no memory left on a device.
    """
    run = RunDir(Path(run_dir))
    with hosts.Heartbeat(lost_after) as heartbeat, StopSignal() as signals, contextlib.ExitStack() as stack:
        stack.enter_context(quiet_orbax())
        compilations = stack.enter_context(Compilations())
        mesh = sharding.make_mesh(experiment.mesh)
        peak = peak_flops(jax.devices())
        stack.enter_context(sharding.context(mesh))
        plan = plan_state(experiment.task, experiment, mesh)
        batches = _open_batches(experiment, mesh)
        first = {kind.name: batches[kind.name].batch(0) for kind in experiment.step_kinds}
        where = {name: batch_shardings(batch, mesh, experiment.microbatches) for name, batch in first.items()}
        start_from = None if run.has_checkpoint() else starting_point(experiment, experiment.task, plan, mesh)
        identity = _identity(experiment, batches, recipe)
        changes = _claim(run, identity, allow_change)
        checkpointer = stack.enter_context(contextlib.closing(Checkpointer(run, experiment.keep_checkpoints)))
        if _is_complete(checkpointer, experiment.steps):
            log.info("%s is complete: %d steps done", run.path, experiment.steps)
            return
        with explain_out_of_memory(experiment, mesh):
            kinds = experiment.step_kinds
            steps = {k.name: compile_step(experiment.task, experiment, plan, k, first[k.name], mesh) for k in kinds}
            latest, state, meta = _first_state(experiment, plan, checkpointer, start_from)
        for change in changes:
            log.warning("changed at step %d: %s", latest, change)
        if changes:
            run.accept(identity, changes, latest)
        stop = StopVote(signals, mesh)
        losses = [HeldOutLoss(experiment, plan, k, batches[k.eval_name], mesh, stop) for k in experiment.held_out]
        if jax.process_index() > 0:
            reporter = None
        if reporter is not None:
            stack.enter_context(contextlib.closing(reporter))
        writer = MetricsWriter(
            run.metrics, run.path / files.TENSORBOARD, latest, meta["lines"], _other_logs(experiment, run)
        )
        stack.enter_context(contextlib.closing(writer))
        profiler = Profiler(run.path / files.PROFILE, experiment.profile_steps)
        stack.enter_context(contextlib.closing(profiler))
        rows = {name: len(next(iter(batch.values()))) for name, batch in first.items()}
        shares = {kind.name: kind.share for kind in experiment.step_kinds}
        feed = Feed(batches, where, rows, shares, latest, experiment.steps)
        stack.enter_context(contextlib.closing(feed))
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
        begins = "resumed" if latest else "starting"
        log.info("%s: %.3g M parameters, %s at step %d", run.path, count, begins, latest)
        for compiled in steps.values():
            log.info("%s", compiled)
        parts = _Run(
            experiment=experiment,
            files=run,
            steps=steps,
            batches=batches,
            checkpointer=checkpointer,
            writer=writer,
            evaluators=[*losses, *evaluators],
            progress=progress,
            sums=MetricSums(meta["interval"]),
            peak=peak,
            compilations=compilations,
            profiler=profiler,
            reporter=reporter,
            stop=stop,
            evaluated=meta["evaluated"],
        )
        stack.push(heartbeat.end)
        with jax.transfer_guard("disallow"), explain_out_of_memory(experiment, mesh):
            _loop(parts, state, latest, feed)


def _open_batches(experiment: ExperimentConfig, mesh: jax.sharding.Mesh) -> dict[str, Batches]:
    """Open the batches of every kind of step, and the held-out ones; whose rows must divide by the devices."""
    task, seed = experiment.task, experiment.seed
    found = {kind.name: task.batches(kind, kind.data, seed) for kind in experiment.step_kinds}
    for kind in experiment.held_out:
        found[kind.eval_name] = task.batches(kind, kind.eval_data, seed)
        batch_shardings(task.batch_shapes(kind, kind.eval_data), mesh, 1)
    return found


def _identity(experiment: ExperimentConfig, batches: Mapping[str, Batches], recipe: str | None) -> RunIdentity:
    data = {name: dict(found.identity) for name, found in batches.items()}
    return RunIdentity(experiment, experiment.task.kind, experiment.task.model_config(), data, recipe)


def _claim(run: RunDir, identity: RunIdentity, allow_change: bool) -> list[str]:
    """Claim the run directory, on the first process; return what changed, once the directory is there for all."""
    changes: list[str] = []
    if jax.process_index() == 0:
        run.create()
    hosts.agreed(0)
    check_path(run.path)
    if jax.process_index() == 0:
        changes = run.claim(identity, allow_change)
        identity.experiment.task.save_assets(run.path)
    hosts.agreed(0)
    return changes


def _is_complete(checkpointer: Checkpointer, steps: int) -> bool:
    """Whether the run has its last step and that step's evaluation.

    Raises:
      ConfigError: it has more steps than that.
    """
    latest = checkpointer.latest() or 0
    if latest > steps:
        raise ConfigError(
            f"steps is {steps}, but {checkpointer.path.parent} has done {latest}; give at least {latest} steps, or "
            "another run directory"
        )
    with contextlib.suppress(DamagedCheckpoint):  # reading the state falls back to the one before
        return latest == steps and checkpointer.verify(latest)["evaluated"] == latest
    return False


def _first_state(
    experiment: ExperimentConfig,
    plan: StatePlan,
    checkpointer: Checkpointer,
    start_from: Callable[[TrainState], TrainState] | None,
) -> tuple[int, TrainState, dict[str, Any]]:
    """Return the steps done, the state, and what was saved beside it: of the last checkpoint that can be read.

    Without any it is a new state, through `start_from`.
    """
    found = checkpointer.restore_newest(plan.abstract)
    if found is not None:
        return found
    state = plan.create(experiment.seed)
    return 0, state if start_from is None else start_from(state), {"interval": None, "evaluated": 0, "lines": 0}


def _other_logs(experiment: ExperimentConfig, run: RunDir) -> list[MetricsLog]:
    if experiment.wandb is None or jax.process_index() > 0:
        return []
    return [WandbLog(experiment.wandb, run.path, to_json(experiment))]

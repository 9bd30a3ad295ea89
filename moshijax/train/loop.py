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
from typing import Any

import jax

from moshijax.errors import ConfigError, Stopped
from moshijax.train import sharding
from moshijax.train.evaluate import Evaluator, Interrupted, Snapshot, held_out_losses
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.feed import Feed, StepBatch, known_faults, open_batches, restore_faults, skipped_recordings
from moshijax.train.plan.flops import peak_flops
from moshijax.train.plan.footprint import explain_out_of_memory
from moshijax.train.run import hosts, metrics
from moshijax.train.run.best import Best, best_of
from moshijax.train.run.checkpoint import Checkpointer, check_path
from moshijax.train.run.compilations import Compilations
from moshijax.train.run.init_from import check_meanings, first_state, starting_point
from moshijax.train.run.nonfinite import NonFiniteSteps, TooManyNonFinite
from moshijax.train.run.profile import Profiler
from moshijax.train.run.run_dir import RunDir, RunIdentity
from moshijax.train.run.signals import StopSignal, StopVote
from moshijax.train.run.weights_and_biases import wandb_logs
from moshijax.train.state import TrainState, plan_state
from moshijax.train.steps import NONFINITE, CompiledStep, compile_steps
from moshijax.train.task import Batches
from moshijax.weights.run import BEST, quiet_orbax

log = logging.getLogger(__name__)

# Called after every step with (steps done, all steps, values of the line or {} between lines).
Progress = Callable[[int, int, Mapping[str, float]], None]


def _loop(run: _Run, state: TrainState, start: int, feed: Feed) -> None:
    experiment = run.experiment
    pending: tuple[int, StepBatch, metrics.PackedSums] | None = None
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
        error = run.nonfinite.report(run.files.path)
        run.finish(state, int(jax.device_get(state.step)))
        raise error from None
    run.finish(state, experiment.steps)


@dataclass
class _Run:
    """One process's part of a run: what the loop needs, put together before the first step.

    Attributes:
      steps, batches: by kind of step; `batches` by name of the held-out ones too.
      evaluated: step of the last complete evaluation.
      best: the best evaluation so far, where the experiment keeps it.
    """

    experiment: ExperimentConfig
    files: RunDir
    steps: dict[str, CompiledStep]
    batches: dict[str, Batches]
    checkpointer: Checkpointer
    writer: metrics.MetricsWriter
    evaluators: Sequence[Evaluator]
    progress: Progress
    sums: metrics.MetricSums
    clock: metrics.Clock
    compilations: Compilations
    profiler: Profiler
    reporter: metrics.Reporter | None
    stop: StopVote
    evaluated: int
    best: Best | None
    nonfinite: NonFiniteSteps = field(default_factory=NonFiniteSteps)

    def save(self, state: TrainState, step: int) -> None:
        with jax.transfer_guard("allow"), self.clock.hold("save"), self.compilations.paused():
            meta = {"step": step, "interval": self.sums.save(), "evaluated": self.evaluated}
            meta |= {"lines": self.writer.lines, "faults": hosts.gathered(known_faults(self.batches))}
            if self.best is not None:
                meta[BEST] = self.best._asdict()
            self.checkpointer.save(state, step, meta)

    def finish(self, state: TrainState, step: int) -> None:
        """Save, and return when the checkpoint is complete."""
        self.save(state, step)
        self.checkpointer.wait()

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
            log.info("%s", metrics.readable_evaluation(step, values))
        if self.experiment.keep_best is not None:
            self.choose(state, step, values)

    def choose(self, state: TrainState, step: int, values: Mapping[str, float]) -> None:
        """Save the state if its evaluation is the best so far.

        Raises:
          ConfigError: the evaluation has no such metric; the state is saved.
        """
        name = self.experiment.keep_best
        if name not in values:
            self.finish(state, step)
            raise ConfigError(f"keep_best is {name!r}, but the evaluations have {', '.join(sorted(values)) or 'none'}")
        found = Best(name, step, float(values[name]))
        with jax.transfer_guard("allow"):
            better = hosts.agreed(found.beats(self.best, self.experiment.best_is))
        if better:
            self.best = found
            self.save(state, step)

    def log(self, step: int, batch: StepBatch, packed: metrics.PackedSums) -> None:
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
            values = self.sums.means() | self.clock.values(experiment.steps - done)
            values |= self.compilations.values(done) | metrics.peak_memory() | skipped_recordings(self.batches)
            self.sums.clear()
            self.writer.write(done, values)
            log.info("%s", metrics.readable(done, experiment.steps, values))
        if done % experiment.report_every == 0 and self.reporter is not None:
            self.reporter.write()
        self.progress(done, experiment.steps, values)


def _stop(run: _Run, state: TrainState, step: int, start: int) -> None:
    if step == start:
        raise Stopped(f"stopped by {run.stop.name} before the first step; the same command starts again")
    run.finish(state, step)
    raise Stopped(f"stopped by {run.stop.name} after {step} steps, which are saved; the same command continues")


def train(
    experiment: ExperimentConfig,
    run_dir: str | Path,
    *,
    evaluators: Sequence[Evaluator] = (),
    recipe: str | None = None,
    progress: Progress = lambda done, steps, values: None,
    reporter: metrics.Reporter | None = None,
    allow_change: Sequence[str] = (),
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
      allow_change: what need not be as the run began, see `RunDir.claim`; what changed is logged.
      lost_after: seconds of silence after which another process counts as lost.

    Raises:
      ConfigError: an impossible experiment, or a run directory of another one.
      DataError: data or a checkpoint that cannot be used.
      Stopped: SIGTERM or SIGINT; a checkpoint of the last step boundary is complete.
      MoshijaxError: three non-finite steps in a row, a full disk, no memory left on a device, or another process that
        trains in this directory.
    """
    run = RunDir(Path(run_dir))
    with hosts.Heartbeat(lost_after) as heartbeat, StopSignal() as signals, contextlib.ExitStack() as stack:

        def opened(thing: Any) -> Any:
            """Close it when the run ends, before what was opened earlier."""
            return stack.enter_context(contextlib.closing(thing))

        stack.enter_context(quiet_orbax())
        compilations = stack.enter_context(Compilations())
        mesh = sharding.make_mesh(experiment.mesh)
        clock = metrics.Clock(peak_flops(jax.devices()))
        stack.enter_context(sharding.context(mesh))
        plan = plan_state(experiment.task, experiment, mesh)
        batches = open_batches(experiment, mesh)
        first = {kind.name: batches[kind.name].batch(0) for kind in experiment.step_kinds}
        identity = RunIdentity.of(experiment, batches, recipe)
        meanings, start_from = identity.meanings(), None
        if not run.has_checkpoint():
            start_from = starting_point(experiment, experiment.task, plan, mesh)
            if experiment.init_from is not None:
                check_meanings(experiment.init_from, meanings)
        heartbeat.before_exit(opened(run.hold()).close)
        check_path(run.path)
        changes = run.claim(identity, allow_change)
        checkpointer = opened(Checkpointer(run, experiment.keep_checkpoints))
        if checkpointer.is_complete(experiment.steps):
            log.info("%s is complete: %d steps done", run.path, experiment.steps)
            return
        with explain_out_of_memory(experiment, mesh):
            steps = compile_steps(experiment, plan, first, mesh)
            latest, state, meta = first_state(experiment, plan, checkpointer, start_from)
        run.accept(identity, changes, latest)
        if "data" not in allow_change:  # then something may have been mended
            restore_faults(batches, meta["faults"])
        if jax.process_index() > 0:
            reporter = None
        if reporter is not None:
            opened(reporter)
        stop = StopVote(signals, mesh)
        parts = _Run(
            experiment=experiment,
            files=run,
            steps=steps,
            batches=batches,
            checkpointer=checkpointer,
            evaluators=[*held_out_losses(experiment, plan, batches, mesh, stop), *evaluators],
            writer=opened(metrics.MetricsWriter(run, latest, meta["lines"], wandb_logs(experiment, run.path))),
            profiler=opened(Profiler(run.profile, experiment.profile_steps)),
            progress=progress,
            sums=metrics.MetricSums(meta["interval"]),
            clock=clock,
            compilations=compilations,
            reporter=reporter,
            stop=stop,
            evaluated=meta["evaluated"],
            best=best_of(meta, experiment.keep_best),
        )
        feed = opened(Feed(experiment, batches, first, mesh, latest))
        count = sum(leaf.size for leaf in jax.tree.leaves(state.params)) / 1e6
        begins = "resumed" if latest else "starting"
        for line in (f"{run.path}: {count:.3g} M parameters, {begins} at step {latest}", *steps.values()):
            log.info("%s", line)
        stack.push(heartbeat.end)
        with jax.transfer_guard("disallow"), explain_out_of_memory(experiment, mesh):
            _loop(parts, state, latest, feed)

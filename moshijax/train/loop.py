"""The training loop: one fixed order, written once.

For n = start, start + 1, ...: stop if a signal asked for it; maybe evaluate; maybe checkpoint; dispatch step n; log
step n - 1. The device always has the next step before the host looks at the last one, and nothing else makes it wait.
After the last step: evaluate, checkpoint.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from moshijax.config_json import to_json
from moshijax.errors import MoshijaxError, Stopped
from moshijax.train import sharding
from moshijax.train.evaluate import EVAL, EVAL_TEXT, Evaluator, HeldOutLoss, Interrupted, Snapshot
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.feed import Fed, Feed
from moshijax.train.plan.flops import peak_flops
from moshijax.train.plan.footprint import is_out_of_memory, remedies
from moshijax.train.run import hosts
from moshijax.train.run import run_dir as files
from moshijax.train.run.checkpoint import Checkpointer, quiet_orbax
from moshijax.train.run.compilations import Compilations
from moshijax.train.run.init_from import starting_point
from moshijax.train.run.metrics import Interval, Writer, readable, readable_evaluation
from moshijax.train.run.profile import Profiler
from moshijax.train.run.run_dir import Claim, RunDir
from moshijax.train.run.signals import Agreement, StopSignal
from moshijax.train.run.weights_and_biases import WandbLog
from moshijax.train.state import StatePlan, TrainState, plan_state
from moshijax.train.steps import NONFINITE, Program, batch_shardings, compile_step
from moshijax.train.task import Source

log = logging.getLogger(__name__)

MAX_NONFINITE = 3
MOST_NAMED = 5  # functions that were compiled when nothing should be
PREFIX = {"audio": "train", "text": "train_text"}

# Called after every step with (steps done, all steps, values of the line or {} between lines).
Progress = Callable[[int, int, Mapping[str, float]], None]


@dataclass
class _Clock:
    """Wall time of an interval without the first step after a start, evaluations and checkpoints."""

    running: float = 0.0
    waited: float = 0.0
    steps: int = 0
    flops: dict[str, float] = field(default_factory=dict)
    amounts: dict[str, float] = field(default_factory=dict)
    held: dict[str, float] = field(default_factory=dict)
    _since: float | None = None

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[None]:
        """Stop the clock for something else than steps, whose seconds are reported as `time/<name>`."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.held[name] = self.held.get(name, 0.0) + time.perf_counter() - begin
            self._since = None

    def wait(self, seconds: float) -> None:
        """Time that went by in waiting for data since the last step was done."""
        if self._since is not None:
            self.waited += seconds

    def step(self, program: Program, amounts: Mapping[str, float]) -> None:
        now = time.perf_counter()
        if self._since is not None:
            self.running += now - self._since
            self.steps += 1
            for total, found in ((self.flops, program.flops), (self.amounts, amounts)):
                for name, amount in found.items():
                    total[name] = total.get(name, 0.0) + amount
        self._since = now

    def values(self, steps_left: int, peak: float) -> dict[str, float]:
        """Rates of the interval, and a fresh start."""
        found = {f"time/{name}": seconds for name, seconds in self.held.items()}
        self.held = {}
        if not self.steps or not self.running:
            return found
        found |= {f"throughput/{name}": amount / self.running for name, amount in self.amounts.items()}
        parts = {name: flops / self.running / peak for name, flops in self.flops.items()}
        found |= {
            "throughput/mfu": sum(parts.values()),
            **{f"throughput/mfu/{name}": share for name, share in parts.items()},
            "time/step": self.running / self.steps,
            "time/data_wait": self.waited,
            "time/data_wait_share": self.waited / self.running,
            "time/left": steps_left * self.running / self.steps,
        }
        self.running, self.waited, self.steps, self.flops, self.amounts = 0.0, 0.0, 0, {}, {}
        return found


@dataclass
class _Run:
    """One process's part of a run: what the loop needs, put together before the first step."""

    experiment: ExperimentConfig
    files: RunDir
    plan: StatePlan
    programs: dict[str, Program]
    sources: dict[str, Source]
    checkpointer: Checkpointer
    writer: Writer
    evaluators: Sequence[Evaluator]
    progress: Progress
    interval: Interval
    peak: float
    compilations: Compilations
    profiler: Profiler
    report: _Report
    stop: Agreement
    evaluated: int  # step of the last complete evaluation
    clock: _Clock = field(default_factory=_Clock)
    bad: list[dict[str, Any]] = field(default_factory=list)
    lines: int = 0

    def save(self, state: TrainState, step: int) -> None:
        with jax.transfer_guard("allow"), self.clock.hold("save"):
            meta = {"step": step, "interval": self.interval.save(), "evaluated": self.evaluated}
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

    def logged(self, step: int, fed: Fed, packed: jax.Array) -> None:
        """Take in the metrics of a step (this waits for it).

        Raises:
          _NonFinite: it was the third non-finite step in a row.
        """
        program, experiment = self.programs[fed.program], self.experiment
        sums = program.unpack(packed)
        done = step + 1
        in_a_row = int(sums.pop(NONFINITE)[0])
        amounts = experiment.task.amounts(fed.program, fed.batch)
        self.clock.step(program, amounts)
        if in_a_row:
            self.bad = [*self.bad, {"step": step, "program": fed.program, "batch": fed.index}][-MAX_NONFINITE:]
            log.warning("step %d was not finite: update skipped (%s batch %d)", step, fed.program, fed.index)
            self.interval.add("skipped", {"steps": (1.0, 1.0)})
            if in_a_row >= MAX_NONFINITE:
                raise _NonFinite
        else:
            self.interval.add(PREFIX[fed.program], sums)
        values: dict[str, float] = {}
        if done % experiment.log_every == 0 or done == experiment.steps:
            values = (
                self.interval.means() | self.clock.values(experiment.steps - done, self.peak) | self._compiled(done)
            )
            values |= peak_memory() | self._skipped()
            self.interval.clear()
            self.writer.write(done, values)
            log.info("%s", readable(done, experiment.steps, values))
        if done % experiment.report_every == 0:
            self.report.write()
        self.progress(done, experiment.steps, values)

    def _skipped(self) -> dict[str, float]:
        """Recordings that this process could not use since it began; their names and reasons are in the log."""
        skipped = sum(len(source.skipped) for source in self.sources.values())
        return {"data/skipped_recordings": float(skipped)} if skipped else {}

    def _compiled(self, done: int) -> dict[str, float]:
        names, seconds = self.compilations.take()
        if names and self.lines:
            counts = ", ".join(f"{name} ({count} times)" for name, count in Counter(names).most_common(MOST_NAMED))
            rest = f" and {len(set(names)) - MOST_NAMED} others" if len(set(names)) > MOST_NAMED else ""
            log.warning("%s%s compiled before step %d, after the programs of the run were ready", counts, rest, done)
        self.lines += 1
        return {"time/compilations": float(len(names)), "time/compile": seconds}


class _Report:
    """Writes the page of a run in a thread; a page that is asked for while one is written is left out."""

    def __init__(self, write: Callable[[Path], None] | None, run_dir: Path) -> None:
        self._write = write if jax.process_index() == 0 else None
        self._run_dir = run_dir
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="report")
        self._last: Future | None = None

    def _once(self) -> None:
        try:
            self._write(self._run_dir)
        except Exception as error:  # the numbers are in metrics.jsonl; a page is not worth the run
            log.warning("no report: %s", error)
            self._write = None

    def write(self) -> None:
        if self._write is not None and (self._last is None or self._last.done()):
            self._last = self._pool.submit(self._once)

    def close(self) -> None:
        """The last page, with everything."""
        if self._last is not None:
            self._last.result()
        self.write()
        self._pool.shutdown(wait=True)


def peak_memory() -> dict[str, float]:
    """Most memory in use on the first device of this process so far, where the device says it."""
    found = jax.local_devices()[0].memory_stats() or {}
    return {"memory/peak_gb": found["peak_bytes_in_use"] / 1e9} if "peak_bytes_in_use" in found else {}


@contextlib.contextmanager
def _out_of_memory(experiment: ExperimentConfig, mesh: jax.sharding.Mesh) -> Iterator[None]:
    """What to change, when a device has no memory left."""
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        if not is_out_of_memory(error):
            raise
        changes = remedies(experiment, mesh, experiment.programs)
        raise MoshijaxError(f"a device has no memory left ({str(error).splitlines()[0]}); {changes}") from error


class _NonFinite(Exception):
    """Too many non-finite steps in a row."""


def train(
    experiment: ExperimentConfig,
    run_dir: str | Path,
    *,
    evaluators: Sequence[Evaluator] = (),
    recipe: str | None = None,
    progress: Progress = lambda done, steps, values: None,
    report: Callable[[Path], None] | None = None,
    allow_change: bool = False,
    lost_after: float = hosts.LOST_AFTER,
) -> None:
    """Train, or go on where the run directory's last complete checkpoint is.

    With several processes (`moshijax.train.run.hosts.join`) each calls this with the same arguments and a run directory
    that all of them see. A process that fails, or learns that another one is lost, then ends at once: see `hosts.Line`.

    Args:
      evaluators: run every `eval_every` steps and at the end, besides the losses on `eval_data` and `eval_text_data`.
      recipe: gin text of the whole experiment, kept in the run directory.
      report: writes a page into the run directory from what is there (`moshijax.report.run.write_run_page`); called in
        a thread every `report_every` steps, and at the end.
      allow_change: go on although the recipe or the data is not that of the run; what changed is logged.
      lost_after: seconds of silence after which another process counts as lost.

    Raises:
      ConfigError: an impossible experiment, or a run directory of another one.
      DataError: data or a checkpoint that cannot be used.
      Stopped: SIGTERM or SIGINT; a checkpoint of the last step boundary is complete.
      MoshijaxError: three non-finite steps in a row, a full disk, or no memory left on a device.
    """
    run = RunDir(Path(run_dir))
    with hosts.Line(lost_after) as line, StopSignal() as signals, contextlib.ExitStack() as stack:
        stack.enter_context(quiet_orbax())
        compilations = stack.enter_context(Compilations())
        mesh = sharding.make_mesh(experiment.mesh)
        peak = peak_flops(jax.devices())
        stack.enter_context(sharding.context(mesh))
        task = experiment.task
        plan = plan_state(task, experiment, mesh)
        sources = task.sources(experiment)
        batches = {program: sources[program].batch(0) for program in experiment.programs}
        where = {program: batch_shardings(batch, mesh, experiment.microbatches) for program, batch in batches.items()}
        held_out = [kind for kind in (EVAL, EVAL_TEXT) if kind in sources]
        shapes = task.batch_shapes(experiment)
        for kind in held_out:
            batch_shardings(shapes[kind], mesh, 1)  # refuses rows that do not divide
        begin = None if run.has_checkpoint() else starting_point(experiment, task, plan, mesh)
        identity = {name: dict(source.identity) for name, source in sources.items()}
        what = Claim(experiment, (task.kind, task.model_config()), identity, recipe)
        changes: list[str] = []
        if jax.process_index() == 0:
            changes = run.claim(what, allow_change)
            task.save_assets(experiment, run.path)
        hosts.agreed(0)  # the directory is there
        checkpointer = stack.enter_context(contextlib.closing(Checkpointer(run, experiment.keep_checkpoints)))
        latest = hosts.agreed(checkpointer.latest() or 0)
        if latest >= experiment.steps and checkpointer.meta(latest)["evaluated"] == latest:
            log.info("%s is complete: %d steps done", run.path, experiment.steps)
            return
        with _out_of_memory(experiment, mesh):
            programs = {p: compile_step(task, experiment, plan, p, batch, mesh) for p, batch in batches.items()}
            state, meta = _first_state(experiment, plan, checkpointer, latest, begin)
        for change in changes:
            log.warning("changed at step %d: %s", latest, change)
        if changes:
            run.accept(what, changes, latest)
        stop = Agreement(signals, mesh)
        losses = [HeldOutLoss(task, experiment, plan, kind, sources[kind], mesh, stop) for kind in held_out]
        evaluators = [*losses, *evaluators]
        page = stack.enter_context(contextlib.closing(_Report(report, run.path)))
        others = [WandbLog(experiment.wandb, run.path, to_json(experiment))] if logs_to_wandb(experiment) else []
        writer = Writer(run.metrics, run.path / files.TENSORBOARD, latest, meta["lines"], others)
        stack.enter_context(contextlib.closing(writer))
        profiler = Profiler(run.path / files.PROFILE, experiment.profile_steps)
        stack.enter_context(contextlib.closing(profiler))
        rows = {program: len(next(iter(batch.values()))) for program, batch in batches.items()}
        feed = Feed(sources, where, rows, experiment.text_ratio, latest, experiment.steps)
        stack.enter_context(contextlib.closing(feed))
        _describe(run, state, programs, latest)
        whole = _Run(
            experiment=experiment,
            files=run,
            plan=plan,
            programs=programs,
            sources=sources,
            checkpointer=checkpointer,
            writer=writer,
            evaluators=evaluators,
            progress=progress,
            interval=Interval(meta["interval"]),
            peak=peak,
            compilations=compilations,
            profiler=profiler,
            report=page,
            stop=stop,
            evaluated=meta["evaluated"],
        )
        stack.push(line.end)
        with jax.transfer_guard("disallow"), _out_of_memory(experiment, mesh):
            _loop(whole, state, latest, feed)


def _loop(run: _Run, state: TrainState, start: int, feed: Feed) -> None:
    experiment = run.experiment
    pending: tuple[int, Fed, jax.Array] | None = None
    question: jax.Array | None = None

    def settle() -> None:
        nonlocal pending
        last, pending = pending, None
        if last is not None:
            run.logged(*last)
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
            fed = feed.get(step)
            run.clock.wait(fed.waited)
            with jax.profiler.StepTraceAnnotation(fed.program, step_num=step):
                state, packed = run.programs[fed.program].run(state, fed.batch)
            settle()
            pending, question = (step, fed, packed), run.stop.ask()
        settle()
        step = experiment.steps
        run.evaluate(state, step)
    except Interrupted:
        _stop(run, state, step, start)
    except _NonFinite:
        _stop_non_finite(run, state)
    run.save(state, experiment.steps)
    run.checkpointer.wait()


def _stop(run: _Run, state: TrainState, step: int, start: int) -> None:
    if step == start:
        raise Stopped(f"stopped by {run.stop.name} before the first step; the same command starts again")
    run.save(state, step)
    run.checkpointer.wait()
    raise Stopped(f"stopped by {run.stop.name} after {step} steps, which are saved; the same command continues")


def _stop_non_finite(run: _Run, state: TrainState) -> None:
    done = int(jax.device_get(state.step))
    if jax.process_index() == 0:
        files.write_json(run.files.path / files.NONFINITE, run.bad)
    run.save(state, done)
    run.checkpointer.wait()
    named = ", ".join(f"{b['step']} ({b['program']} batch {b['batch']})" for b in run.bad)
    raise MoshijaxError(
        f"steps {named} were not finite, {MAX_NONFINITE} in a row; the last good parameters are saved and the batches "
        f"written to {run.files.path / files.NONFINITE}; look at them, or lower the learning rate in a new run"
    )


def _first_state(
    experiment: ExperimentConfig,
    plan: StatePlan,
    checkpointer: Checkpointer,
    latest: int,
    begin: Callable[[TrainState], TrainState] | None,
) -> tuple[TrainState, dict[str, Any]]:
    """State, and what was saved beside it: of the run's last checkpoint, else a new one that `begin` goes over."""
    if latest:
        return checkpointer.restore(latest, plan.abstract)
    state = plan.create(experiment.seed)
    return state if begin is None else begin(state), {"interval": None, "evaluated": 0, "lines": 0}


def _describe(run: RunDir, state: TrainState, programs: Mapping[str, Program], start: int) -> None:
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    log.info("%s: %.3g M parameters, %s at step %d", run.path, count / 1e6, "resumed" if start else "starting", start)
    for name, program in programs.items():
        log.info(
            "%s step: %.3g GFLOP, %.0f MB of temporary memory",
            name,
            sum(program.flops.values()) / 1e9,
            program.memory_bytes / 1e6,
        )


def logs_to_wandb(experiment: ExperimentConfig) -> bool:
    return experiment.wandb is not None and jax.process_index() == 0

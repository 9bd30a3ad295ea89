"""Jobs over recordings or texts on Apache Beam (extra `beam`): many machines make the shards of one job.

An element of the pipeline is a shard. Each worker makes its shards in a process of its own, so that one that is killed
costs its shard alone, which is then made again; a shard appears when it is complete, whoever made it, and whatever the
runner does twice is done with the same bytes. Results travel as files beside the shards: the same command continues
after a failure, on any runner.
"""

from __future__ import annotations

import contextlib
import json
import pickle
import threading
import weakref
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from moshijax import files, optional
from moshijax.data import buckets
from moshijax.data.findings import Report
from moshijax.data.isolation import Isolated, Lost
from moshijax.data.job import Job, Progress, Runner, begin, finish, owned, run_job, settle, settled
from moshijax.data.records import read_index
from moshijax.data.shards import ShardPlan, Work, WorkList, shards_of
from moshijax.errors import ConfigError, DataError, MoshijaxError

_DIRECT = "apache_beam.runners.portability.fn_api_runner.FnApiRunner"
_FAILED = ".failed.json"
_RUNNING: weakref.WeakSet[Isolated] = weakref.WeakSet()  # of the workers in this process
_ERRORS = {error.exit_code: error for error in (MoshijaxError, ConfigError, DataError)}


class OnBeam:
    """Runs jobs on Beam, as `moshijax.data.job.run_job` does here.

    Args:
      runner: "direct" for this machine, or a runner that Beam knows, such as DataflowRunner, FlinkRunner, SparkRunner.
      options: of the runner, each NAME=VALUE, or NAME for one without a value.

    Raises:
      MissingPackage: Beam is not installed.
      ConfigError: the runner or an option is none.
    """

    def __init__(self, runner: str, options: Sequence[str] = ()):
        beam = optional.load("apache_beam")
        from apache_beam.options.pipeline_options import PipelineOptions

        try:
            given = [f"--{option}" for option in options]
            known = PipelineOptions(given).get_all_options(drop_default=True)
            self._runner = beam.runners.create_runner(_DIRECT if runner == "direct" else runner)
        except (ValueError, SystemExit, ImportError, AttributeError) as error:
            named = f"{runner!r} with the options {' '.join(options) or '(none)'}"
            raise ConfigError(f"Beam has no runner {named} ({error})") from error
        if runner == "direct" and known.get("direct_running_mode") == "multi_processing":
            # Shards have processes of their own. And if one of Beam's died, it would wait for ever.
            raise ConfigError("direct_running_mode=multi_processing: leave it out, as each worker has its process")
        self._options = PipelineOptions(given)

    def __call__(self, manifest: WorkList, out_dir: Path, plan: ShardPlan, progress: Progress | None = None) -> Job:
        """Do a job; arguments, result and errors as of `run_job`. A strict plan is refused at the end, not before.

        Args:
          manifest: of the recordings or texts.
          out_dir: folder that all workers see, such as one in a bucket.
          plan: how they are made.
          progress: called once, at the end.

        Raises:
          MoshijaxError: of the first shard that could not be made; the others are kept.
        """
        import apache_beam as beam

        with owned(out_dir):
            standing, shards = begin(manifest, out_dir, plan), shards_of(manifest, plan)
            if len(standing) == len(shards) and (out_dir / plan.index_name).exists():
                index = read_index(out_dir, plan.index_name)
                return Job(index, Report.from_json(index["report"]), 0)
            waiting = [(name, items) for name, items in shards if name not in standing]
            names = [name for name, _ in waiting]
            _take_failures(out_dir, names)  # of a job whose process was killed
            make = _worker(pickle.dumps(plan), out_dir)
            with _ended_when_stopped(), beam.Pipeline(runner=self._runner, options=self._options) as pipeline:
                elements = pipeline | "shards" >> beam.Create(waiting)
                elements | "spread" >> beam.Reshuffle() | "make" >> beam.ParDo(make)
            if failures := _take_failures(out_dir, names):
                raise _ERRORS[failures[0]["exit_code"]](failures[0]["message"])
            results = [standing[name] if name in standing else settled(out_dir, name) for name, _ in shards]
            index, report = finish(manifest, out_dir, plan, results)
            if progress is not None:
                progress(len(manifest.items), len(manifest.items), report)
            return Job(index, report, len(waiting))


def _worker(plan: bytes, out_dir: Path) -> Any:
    """Return the Beam function that makes shards; its class needs Beam, which may not be there.

    The plan stays a pickle until it is in the process that makes shards: what it opens, such as a codec, is opened
    there alone, so that one process holds the accelerator.
    """
    import apache_beam as beam

    class Make(beam.DoFn):
        def setup(self) -> None:
            self.isolated = Isolated()
            _RUNNING.add(self.isolated)

        def process(self, element: tuple[str, tuple[Work, ...]]) -> None:
            name, items = element
            try:
                self.isolated(_make, plan, items, out_dir, name, seconds=threading.TIMEOUT_MAX)
            except Lost as error:
                raise RuntimeError(f"the process that made {name} {error}") from error
            except MoshijaxError as error:
                # Told by the job when all is done: runners would try it again, and wrap its message in traces.
                content = {"exit_code": error.exit_code, "message": str(error)}
                files.write_json(out_dir / f"{name}{_FAILED}", content)

        def teardown(self) -> None:
            self.isolated.close()

    return Make()


def _make(plan: bytes, items: tuple[Work, ...], out_dir: Path, name: str) -> None:
    settle(pickle.loads(plan), items, out_dir, name)


@contextlib.contextmanager
def _ended_when_stopped() -> Iterator[None]:
    """End the processes of the workers in this process when it is stopped; Beam would wait for them.

    Raises:
      KeyboardInterrupt: also where Beam wraps it.
    """
    try:
        yield
    except (KeyboardInterrupt, RuntimeError) as error:
        for isolated in list(_RUNNING):
            isolated.close()
        if str(error).startswith("KeyboardInterrupt"):
            raise KeyboardInterrupt from error
        raise


def _take_failures(out_dir: Path, names: list[str]) -> list[dict[str, Any]]:
    """Return why shards could not be made, in their order, and forget it."""
    there = set(buckets.listed(out_dir))
    paths = [out_dir / f"{name}{_FAILED}" for name in names if f"{name}{_FAILED}" in there]
    found = [json.loads(path.read_text()) for path in paths]
    for path in paths:
        path.unlink()
    return found


def runner_of(name: str, options: Sequence[str] = ()) -> Runner:
    """Return what does a job: `run_job` for "local", Beam for "beam:direct" and "beam:RUNNER".

    Raises:
      ConfigError: another name, or options of the local runner, which has none.
      MissingPackage: Beam is not installed.
    """
    kind, _, runner = name.partition(":")
    if name == "local":
        if options:
            raise ConfigError(f"--runner-option {options[0]} is of Beam: add --runner beam:RUNNER, or leave it out")
        return run_job
    if kind != "beam" or not runner:
        raise ConfigError(f"--runner {name!r}: write local, beam:direct, or beam: and the name of a Beam runner")
    return OnBeam(runner, options)

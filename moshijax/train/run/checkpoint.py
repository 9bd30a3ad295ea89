"""Checkpoints: the whole state of a run, saved asynchronously by Orbax, and only complete ones read."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from moshijax import files
from moshijax.config_json import from_json
from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.files import is_out_of_space
from moshijax.train.run import hosts
from moshijax.train.run.best import NewestAndBest, check_best
from moshijax.train.run.run_dir import RunDir
from moshijax.train.sharding import path_of
from moshijax.train.state import TrainState
from moshijax.weights import checksums
from moshijax.weights.run import (
    BEST,
    CHECKSUMS,
    META_ITEM,
    MODEL_ITEM,
    DamagedCheckpoint,
    reading,
    tree_of,
    verify_item,
)

log = logging.getLogger(__name__)

TENSORSTORE_FULL = "RESOURCE_EXHAUSTED"  # how TensorStore names a full disk
#: Item of a checkpoint that only the run itself needs; the model is an item of its own (`moshijax.weights.run`).
OPTIMIZER_ITEM = "optimizer"
META_FILE = "metadata"  # as `JsonCheckpointHandler` names it
AFTER_FREEING = "free some and run the same command again: the run continues from its last complete checkpoint"
SHOWN_MISMATCHES = 12
PROBE = ".probe"
_Faults = dict[str, dict[str, tuple[str, bool]]]  # `moshijax.train.feed.Faults` through JSON


@contextlib.contextmanager
def _space_errors(path: Path) -> Iterator[None]:
    """Report a full disk in one line; whatever was being written stays invisible."""
    try:
        yield
    except Exception as error:
        if not is_out_of_space(error) and TENSORSTORE_FULL not in str(error):
            raise
        raise MoshijaxError(f"no space left for a checkpoint in {path}; {AFTER_FREEING}") from error


def check_space(path: Path, needed: int) -> None:
    """Refuse to start writing what cannot fit.

    Raises:
      MoshijaxError: the disk of `path` has less than `needed` bytes free.
    """
    free = shutil.disk_usage(path).free
    if free < needed:
        raise MoshijaxError(
            f"no space left for a checkpoint in {path}: it needs {needed / 1e6:.1f} MB, {free / 1e6:.1f} MB are free; "
            f"{AFTER_FREEING}"
        )


def check_path(run_dir: Path) -> None:
    """Check that a checkpoint written below a directory can be read back, by a tiny one.

    Orbax looks for its files by patterns and takes a backslash for a slash: below such a folder it writes checkpoints
    that nobody can read.

    Raises:
      ConfigError: it cannot.
    """
    path = run_dir.absolute()
    remedy = "use a run directory whose whole path has no [, ] and no backslash"
    if "\\" in str(path):  # what Orbax writes would go to another folder
        raise ConfigError(f"checkpoints in {path} could not be read back: its path has a backslash; {remedy}")
    probe, written = path / PROBE, {"x": np.arange(3)}
    try:
        with _space_errors(path), contextlib.closing(ocp.StandardCheckpointer()) as checkpointer:
            checkpointer.save(probe, written, force=True)
            checkpointer.wait_until_finished()
            found = checkpointer.restore(probe, written)
            hosts.agreed(0)  # all have read it before it is removed
        readable = np.array_equal(found["x"], written["x"])
    except ValueError:  # as TensorStore reports what is missing
        readable = False
    finally:
        if jax.process_index() == 0:
            shutil.rmtree(probe, ignore_errors=True)
    if not readable:
        raise ConfigError(f"checkpoints in {path} could not be read back, as a small one shows; {remedy}")


def _parts(state: Any) -> dict[str, Any]:
    """Return the items of a checkpoint: what other commands read (the model), and what only this run needs."""
    model = {"params": state.params, "model_state": state.model_state, "ema": state.ema}
    rest = {"opt_states": state.opt_states, "step": state.step, "nonfinite": state.nonfinite}
    return {MODEL_ITEM: {name: tree for name, tree in model.items() if jax.tree.leaves(tree)}, OPTIMIZER_ITEM: rest}


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def raise_on_mismatch(where: Path, expected: Any, found: Any, remedy: str = "use the recipe it was made by") -> None:
    """Check that a checkpoint has the leaves that the run needs.

    Raises:
      DataError: leaves are missing, unexpected or of other shapes; all are listed.
    """
    wanted, there = _leaves(expected), _leaves(found)
    lines = [f"{name} is missing" for name in wanted if name not in there]
    lines += [f"{name} is not part of this run" for name in there if name not in wanted]
    for name, leaf in wanted.items():
        if name in there and tuple(there[name].shape) != tuple(leaf.shape):
            lines.append(f"{name} has shape {tuple(there[name].shape)} there, {tuple(leaf.shape)} here")
    if lines:
        more = f" and {len(lines) - SHOWN_MISMATCHES} more" if len(lines) > SHOWN_MISMATCHES else ""
        raise DataError(f"{where} does not fit: {'; '.join(lines[:SHOWN_MISMATCHES])}{more}; {remedy}")


def _check_meta(meta: Any) -> None:
    """Raise a ValueError unless this is what the loop saves beside a state: counts, sums of metrics, bad recordings."""
    if not isinstance(meta, dict) or not isinstance(meta.get("interval"), dict):
        raise ValueError("its meta has no sums of metrics")
    for name in ("step", "evaluated", "lines"):
        if type(meta.get(name)) is not int:
            raise ValueError(f"its meta has no whole number as {name}")
    for name, pair in meta["interval"].items():
        if not isinstance(pair, list) or [type(x) in (int, float) for x in pair] != [True, True]:
            raise ValueError(f"its meta has no two numbers for {name}")
    try:
        from_json(tuple[_Faults, ...], meta.get("faults"), "faults")
    except ConfigError as error:
        raise ValueError(f"its meta has no list of unusable recordings: {error}") from None
    check_best(meta)


class Checkpointer:
    """Checkpoints of one run directory; step numbers are steps done."""

    def __init__(self, run: RunDir, keep: int = 2) -> None:
        self.path = run.checkpoints.absolute()
        self._unverified: int | None = None
        self._kept = NewestAndBest(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._kept, create=True, enable_async_checkpointing=True
        )
        items = {name: ocp.StandardCheckpointHandler() for name in (MODEL_ITEM, OPTIMIZER_ITEM)}
        with _space_errors(self.path):
            self._manager = ocp.CheckpointManager(
                self.path, options=options, item_handlers={**items, META_ITEM: ocp.JsonCheckpointHandler()}
            )

    def latest(self) -> int | None:
        """Steps done at the newest complete checkpoint that process 0 sees, or None."""
        return hosts.agreed(self._manager.latest_step() or 0) or None

    def steps(self) -> list[int]:
        """Steps done at every complete checkpoint."""
        return list(self._manager.all_steps())

    def is_complete(self, steps: int) -> bool:
        """Whether the run has its last step and that step's evaluation.

        Raises:
          ConfigError: it has more steps than that.
        """
        latest = self.latest() or 0
        if latest > steps:
            raise ConfigError(
                f"steps is {steps}, but {self.path.parent} has done {latest}; give at least {latest} steps, or "
                "another run directory"
            )
        complete = False
        if jax.process_index() == 0:
            with contextlib.suppress(DamagedCheckpoint):  # reading the state falls back to the one before
                complete = latest == steps and self.verify(latest)["evaluated"] == latest
        return bool(hosts.agreed(complete))

    def save(self, state: TrainState, step: int, meta: Mapping[str, Any]) -> None:
        """Start saving; the state may be donated right after. Of a step that is there already only the meta is written.

        Checksums of all leaves are saved with it.

        Raises:
          MoshijaxError: the disk is full, now or when the previous checkpoint was written, or that one cannot be read
            back.
        """
        self.wait()
        self._kept.best = meta[BEST]["step"] if BEST in meta else None
        if step in self.steps():
            self._write_meta(step, meta)
            return
        check_space(self.path, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        parts = _parts(state)
        items = {name: ocp.args.StandardSave(tree) for name, tree in parts.items()}
        sums = {name: checksums.checksums(tree) for name, tree in parts.items()}
        items[META_ITEM] = ocp.args.JsonSave({**meta, CHECKSUMS: sums})
        with _space_errors(self.path):
            self._manager.save(step, args=ocp.args.Composite(**items), force=True)
        self._unverified = step

    def _write_meta(self, step: int, meta: Mapping[str, Any]) -> None:
        """Say of a checkpoint what was evaluated after it: a run that was stopped within an evaluation repeats that."""
        if jax.process_index() == 0:
            path = self.path / str(step) / META_ITEM / META_FILE
            found = files.read_json(path, "meta of a checkpoint")
            with _space_errors(self.path):
                files.write_json(path, {**found, **meta})
        hosts.agreed(0)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and meta of a checkpoint, laid out as `abstract` (shapes with shardings) says, on any topology.

        Raises:
          DataError: leaves are missing, unexpected or of other shapes; all are listed.
          DamagedCheckpoint: it cannot be read.
        """
        wanted = _parts(abstract)
        with self._reading(step):
            metadata = self._manager.item_metadata(step)
            for name, tree in wanted.items():
                raise_on_mismatch(self.path / str(step) / name, tree, tree_of(metadata, name))
            items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
            items[META_ITEM] = ocp.args.JsonRestore()
            found = self._manager.restore(step, args=ocp.args.Composite(**items))
            _check_meta(found[META_ITEM])
            for name in wanted:
                verify_item(found, name)
        model, rest = found[MODEL_ITEM], found[OPTIMIZER_ITEM]
        state = TrainState(
            step=rest["step"],
            params=model["params"],
            model_state=model.get("model_state", abstract.model_state),
            opt_states=rest["opt_states"],
            ema=model.get("ema", {}),
            nonfinite=rest["nonfinite"],
        )
        return state, found[META_ITEM]

    def restore_newest(self, abstract: TrainState) -> tuple[int, TrainState, dict[str, Any]] | None:
        """Return step, state and meta of the newest checkpoint that can be read, or None if there is no checkpoint.

        A damaged one is named in the log and moved aside, so that the step can be saved again. A run of several
        processes stops instead: some of them may have read their part.

        Raises:
          DamagedCheckpoint: none can be read.
          DataError: see `restore`.
        """
        damaged: list[DamagedCheckpoint] = []
        newest = self.latest()
        for step in sorted((step for step in self.steps() if step <= (newest or 0)), reverse=True):
            try:
                state, meta = self.restore(step, abstract)
            except DamagedCheckpoint as error:
                if jax.process_count() > 1:
                    raise
                damaged.append(error)
                continue
            for error in damaged:
                self._set_aside(error, step)
            return step, state, meta
        if damaged:
            raise damaged[0]
        return None

    def _set_aside(self, error: DamagedCheckpoint, used: int) -> None:
        aside = error.path.with_name(f"{error.path.name}.damaged")
        shutil.rmtree(aside, ignore_errors=True)
        error.path.rename(aside)
        self._manager.reload()
        log.warning("%s; moved to %s, resuming from checkpoint %d", error.fault, aside.name, used)

    def wait(self) -> None:
        """Return when the last checkpoint is complete and the first process has read it back.

        The others do not look: on a shared disk they may see what it wrote a little later.

        Raises:
          MoshijaxError: the disk is full, or the checkpoint cannot be read.
        """
        with _space_errors(self.path):
            self._manager.wait_until_finished()
        step, self._unverified = self._unverified, None
        if step is None:
            return
        if jax.process_index() == 0:
            try:
                self.verify(step)
            except DamagedCheckpoint as error:
                raise MoshijaxError(
                    f"{error.fault} right after it was written; check the disk, then run the same command again: the "
                    "run continues from the last checkpoint that can be read"
                ) from error
        with jax.transfer_guard("allow"):
            hosts.agreed(0)

    def verify(self, step: int) -> dict[str, Any]:
        """Read the metadata of a checkpoint and the smallest leaf of each item; return what was saved beside the state.

        One process does this alone.

        Raises:
          DamagedCheckpoint: it cannot be read.
        """
        me = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=me, active_processes={me})

        def read(name: str, handler: ocp.CheckpointHandler, args: Any) -> Any:
            with contextlib.closing(ocp.Checkpointer(handler, multiprocessing_options=alone)) as reader:
                return reader.restore(self.path / str(step) / name, args=args)

        with self._reading(step), jax.transfer_guard("allow"):
            metadata = self._manager.item_metadata(step)
            for name in (MODEL_ITEM, OPTIMIZER_ITEM):
                leaves = _leaves(tree_of(metadata, name))
                path, smallest = min(leaves.items(), key=lambda pair: np.prod(pair[1].shape))
                where = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
                leaf: Any = jax.ShapeDtypeStruct(smallest.shape, smallest.dtype, sharding=where)
                for key in reversed(path.split("/")):
                    leaf = {key: leaf}
                args = ocp.args.PyTreeRestore(
                    item=leaf, restore_args=ocp.checkpoint_utils.construct_restore_args(leaf), partial_restore=True
                )
                read(name, ocp.PyTreeCheckpointHandler(multiprocessing_options=alone), args)
            meta = read(META_ITEM, ocp.JsonCheckpointHandler(multiprocessing_options=alone), ocp.args.JsonRestore())
            _check_meta(meta)
            return meta

    def _reading(self, step: int) -> contextlib.AbstractContextManager[None]:
        return reading(self.path / str(step), self.steps())

    def close(self) -> None:
        with _space_errors(self.path):
            self._manager.close()

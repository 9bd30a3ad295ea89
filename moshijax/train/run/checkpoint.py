"""Checkpoints: the whole state of a run, saved asynchronously by Orbax, and only complete ones read."""

from __future__ import annotations

import contextlib
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from moshijax.errors import DataError, MoshijaxError
from moshijax.files import is_out_of_space
from moshijax.train.run.run_dir import RunDir
from moshijax.train.sharding import path_of
from moshijax.train.state import TrainState
from moshijax.weights.run import MODEL_ITEM

TENSORSTORE_FULL = "RESOURCE_EXHAUSTED"  # how TensorStore names a full disk
#: Item of a checkpoint that only the run itself needs; the model is an item of its own (`moshijax.weights.run`).
OPTIMIZER_ITEM = "optimizer"
AFTER_FREEING = "free some and run the same command again: the run continues from its last complete checkpoint"
SHOWN_MISMATCHES = 12


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


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silence Orbax's own log: what goes wrong in its threads is raised at the next save or wait, and reported once."""

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


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


class Checkpointer:
    """Checkpoints of one run directory; step numbers are steps done."""

    def __init__(self, run: RunDir, keep: int = 2) -> None:
        self.path = run.checkpoints.absolute()
        options = ocp.CheckpointManagerOptions(max_to_keep=keep, create=True, enable_async_checkpointing=True)
        items = {name: ocp.StandardCheckpointHandler() for name in (MODEL_ITEM, OPTIMIZER_ITEM)}
        with _space_errors(self.path):
            self._manager = ocp.CheckpointManager(
                self.path, options=options, item_handlers={**items, "meta": ocp.JsonCheckpointHandler()}
            )

    def latest(self) -> int | None:
        """Steps done at the newest complete checkpoint, or None."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """Steps done at every complete checkpoint."""
        return list(self._manager.all_steps())

    def save(self, state: TrainState, step: int, meta: Mapping[str, Any]) -> None:
        """Start saving; the state may be donated right after. A step that is there already is left as it is.

        Raises:
          MoshijaxError: the disk is full, now or when the previous checkpoint was written.
        """
        if step in self.steps():
            return
        check_space(self.path, sum(leaf.nbytes for leaf in jax.tree.leaves(state)))
        items = {name: ocp.args.StandardSave(tree) for name, tree in _parts(state).items()}
        with _space_errors(self.path):
            self._manager.save(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonSave(dict(meta))), force=True)

    def restore(self, step: int, abstract: TrainState) -> tuple[TrainState, dict[str, Any]]:
        """State and meta of a checkpoint, laid out as `abstract` (shapes with shardings) says, on any topology.

        Raises:
          DataError: leaves are missing, unexpected or of other shapes; all are listed.
        """
        wanted = _parts(abstract)
        metadata = self._manager.item_metadata(step)
        for name, tree in wanted.items():
            raise_on_mismatch(self.path / str(step) / name, tree, metadata[name].tree)
        items = {name: ocp.args.StandardRestore(tree) for name, tree in wanted.items()}
        found = self._manager.restore(step, args=ocp.args.Composite(**items, meta=ocp.args.JsonRestore()))
        model, rest = found[MODEL_ITEM], found[OPTIMIZER_ITEM]
        state = TrainState(
            step=rest["step"],
            params=model["params"],
            model_state=model.get("model_state", abstract.model_state),
            opt_states=rest["opt_states"],
            ema=model.get("ema", {}),
            nonfinite=rest["nonfinite"],
        )
        return state, found["meta"]

    def meta(self, step: int) -> dict[str, Any]:
        """Read what was saved beside the state."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def wait(self) -> None:
        """Return when the last checkpoint is complete.

        Raises:
          MoshijaxError: the disk is full.
        """
        with _space_errors(self.path):
            self._manager.wait_until_finished()

    def close(self) -> None:
        with _space_errors(self.path):
            self._manager.close()

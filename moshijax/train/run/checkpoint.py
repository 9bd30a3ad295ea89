"""Checkpoints: the whole state of a run, saved asynchronously by Orbax, and only complete ones read."""

from __future__ import annotations

import contextlib
import errno
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from moshijax.config_json import from_json
from moshijax.errors import DataError, MoshijaxError
from moshijax.train.run.run_dir import RunDir
from moshijax.train.sharding import path_of
from moshijax.train.state import TrainState

NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_SPACE_WORDS = ("no space left", "resource_exhausted", "disk quota", "file too large")
AFTER_FREEING = "free some and run the same command again: the run continues from its last complete checkpoint"
SHOWN_MISMATCHES = 12


@contextlib.contextmanager
def _space_errors(path: Path) -> Iterator[None]:
    """A full disk as one line; whatever was being written stays invisible."""
    try:
        yield
    except Exception as error:
        text = str(error).lower()
        full = isinstance(error, OSError) and error.errno in NO_SPACE
        if not full and not any(words in text for words in NO_SPACE_WORDS):
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
    """Without Orbax's own log: what goes wrong in its threads is raised at the next save or wait, and said once."""

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def _parts(state: Any) -> dict[str, Any]:
    """Items of a checkpoint: what other commands read (the model) apart from what only this run needs."""
    model = {"params": state.params, "model_state": state.model_state, "ema": state.ema}
    rest = {"opt_states": state.opt_states, "step": state.step, "nonfinite": state.nonfinite}
    return {"model": {name: tree for name, tree in model.items() if jax.tree.leaves(tree)}, "optimizer": rest}


def _leaves(tree: Any) -> dict[str, Any]:
    return {path_of(keys): leaf for keys, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]}


def raise_on_mismatch(where: Path, expected: Any, found: Any, remedy: str = "use the recipe it was made by") -> None:
    """List every leaf in which a checkpoint is not what the run needs."""
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
        items = {"model": ocp.StandardCheckpointHandler(), "optimizer": ocp.StandardCheckpointHandler()}
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
        state = TrainState(
            step=found["optimizer"]["step"],
            params=found["model"]["params"],
            model_state=found["model"].get("model_state", abstract.model_state),
            opt_states=found["optimizer"]["opt_states"],
            ema=found["model"].get("ema", {}),
            nonfinite=found["optimizer"]["nonfinite"],
        )
        return state, found["meta"]

    def meta(self, step: int) -> dict[str, Any]:
        """What was saved beside the state."""
        return self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]

    def model_shapes(self, step: int) -> dict[str, Any]:
        """Shapes and types of params, model_state and ema of a checkpoint (those that it has)."""
        metadata = self._manager.item_metadata(step)["model"].tree
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), metadata)

    def restore_model(self, step: int, shardings: Any = None) -> dict[str, Any]:
        """params, model_state and ema of a checkpoint (those that it has), on the first device of this machine or,
        where `shardings` of the parameters are given, laid out like that."""
        one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
        flat = {} if shardings is None else flatten_dict(shardings, sep="/")

        def place(keys: Any, leaf: Any) -> Any:
            kind, _, name = path_of(keys).partition("/")
            where = flat.get(name, one) if kind in ("params", "ema") else one
            return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=where)

        abstract = jax.tree_util.tree_map_with_path(place, self.model_shapes(step))
        args = ocp.args.Composite(model=ocp.args.StandardRestore(abstract))
        return self._manager.restore(step, args=args)["model"]

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


def load_run(run_dir: str | Path, step: int | None = None) -> tuple[str, Any, Any, dict[str, Any]]:
    """Read the model of a run.

    Args:
      step: steps done at the checkpoint to read; default: the newest complete one.

    Returns:
      kind ("lm" or "codec"), the model's config, its parameters as `moshijax.lm` or `moshijax.codec` takes them (the
      running average where the run keeps one), and {"step", "tokenizer": path or None}.

    Raises:
      DataError: no run directory, or it has no complete checkpoint.
    """
    kind, config, model, found = read_model(run_dir, step)
    params = model["params"]
    if kind == "codec":
        from moshijax.codec.training import codec_variables

        params = codec_variables({"params": params, "codebooks": model["model_state"]})
    tokenizer = Path(run_dir) / "tokenizer.model"
    return kind, config, params, {"step": found, "tokenizer": tokenizer if tokenizer.exists() else None}


def read_model(
    run_dir: str | Path, step: int | None = None, shardings: Any = None
) -> tuple[str, Any, dict[str, Any], int]:
    """Everything of a run's model that is learnt, side heads included.

    Args:
      step: steps done at the checkpoint to read; default: the newest complete one.
      shardings: of the parameters; default: all of it on the first device.

    Returns:
      kind, the model's config, {"params" (the running average where the run keeps one), "model_state"}, steps done.

    Raises:
      DataError: no run directory, or it has no complete checkpoint.
    """
    with _opened(run_dir, step) as (kind, config, checkpointer, found):
        model = checkpointer.restore_model(found, shardings)
    tree = {"params": _with(model["params"], model.get("ema", {})), "model_state": model.get("model_state", {})}
    return kind, config, tree, found


def model_shapes(run_dir: str | Path, step: int | None = None) -> tuple[str, Any, dict[str, Any]]:
    """Kind and config of a run's model, and the shapes and types of {"params", "model_state"}; no weights are read.

    Raises:
      DataError: no run directory, or it has no complete checkpoint.
    """
    with _opened(run_dir, step) as (kind, config, checkpointer, found):
        model = checkpointer.model_shapes(found)
    return kind, config, {"params": model["params"], "model_state": model.get("model_state", {})}


@contextlib.contextmanager
def _opened(run_dir: str | Path, step: int | None) -> Iterator[tuple[str, Any, Checkpointer, int]]:
    """Kind and config of a run's model, its checkpoints, and the one to read."""
    run = RunDir(Path(run_dir))
    kind, plain = run.model()
    config = from_json(_config_class(kind), plain, "model.json")
    if not run.checkpoints.is_dir():
        raise DataError(f"{run.path} has no checkpoint yet; train it first: moshijax train RECIPE --run-dir {run.path}")
    checkpointer = Checkpointer(run)
    try:
        found = checkpointer.latest() if step is None else step
        if found is None or found not in checkpointer.steps():
            wanted = "complete checkpoint" if step is None else f"checkpoint of step {step}"
            raise DataError(f"{run.path} has no {wanted}; train it first: moshijax train RECIPE --run-dir {run.path}")
        yield kind, config, checkpointer, found
    finally:
        checkpointer.close()


def _with(params: dict[str, Any], average: dict[str, Any]) -> dict[str, Any]:
    """Parameters, and their running average where there is one."""
    return unflatten_dict({**flatten_dict(params), **flatten_dict(average)})


def _config_class(kind: str) -> type:
    if kind == "codec":
        from moshijax.codec import MimiConfig

        return MimiConfig
    if kind == "lm":
        from moshijax.lm import LMConfig

        return LMConfig
    raise DataError(f"model.json names the kind {kind!r}; this version knows 'codec' and 'lm'")

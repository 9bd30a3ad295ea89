"""The model of a training run: what `model.json` and the checkpoints of a run directory hold of it.

A checkpoint is a directory of Orbax items; the item `MODEL_ITEM` holds `params`, `model_state` (what is learnt without
gradients, such as codebooks) and `ema` (the running average of the parameters), each where the run has it. The trainer
(`moshijax.train.run.checkpoint`) writes it and the rest of the state; what needs the model alone reads it here.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import orbax.checkpoint as ocp
from flax.traverse_util import flatten_dict, unflatten_dict

from moshijax.config_json import from_json
from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.weights import checksums
from moshijax.weights.families import family_of
from moshijax.weights.families.family import Family
from moshijax.weights.model import OpenedModel
from moshijax.weights.published import tokenizer_in
from moshijax.weights.run_files import CHECKPOINTS, MODEL, damaged, read_record

#: Items of a checkpoint: the model, and what is said about all items; there, the checksums of the leaves of each.
MODEL_ITEM, META_ITEM, CHECKSUMS = "model", "meta", "checksums"
#: In the meta of a run that keeps the best, once there is one: which evaluation was the best so far.
BEST = "best"
_SHOWN_FAULT = 240  # characters of a library's error


class RunModel(NamedTuple):
    """The model of a run at one checkpoint.

    Attributes:
      family: what kind of model it is.
      config: of the model.
      params: as `moshijax.lm` or `moshijax.codec` takes them; the running average where the run keeps one.
      step: steps done at the checkpoint.
      tokenizer: the file of the run's tokenizer, if it has one.
    """

    family: Family
    config: Any
    params: dict[str, Any]
    step: int
    tokenizer: Path | None


class TrainedModel(NamedTuple):
    """Everything of a run's model that is learnt, side heads included.

    Attributes:
      family: what kind of model it is.
      config: of the model.
      variables: {"params", "model_state"}, of arrays or of their shapes and types.
      step: steps done at the checkpoint.
    """

    family: Family
    config: Any
    variables: dict[str, Any]
    step: int


class DamagedCheckpoint(DataError):
    """A checkpoint that cannot be read.

    Attributes:
      path: folder of the checkpoint.
      fault: which one it is and what is wrong with it, without the remedy.
    """

    def __init__(self, path: Path, fault: str, remedy: str) -> None:
        super().__init__(f"{fault}; {remedy}")
        self.path, self.fault = path, fault


@contextlib.contextmanager
def reading(checkpoint: Path, steps: Sequence[int]) -> Iterator[None]:
    """Say which checkpoint is damaged, and what is wrong, where the block fails to read it.

    Args:
      checkpoint: folder of the checkpoint, named by its step.
      steps: all complete checkpoints beside it.

    Raises:
      DamagedCheckpoint: in place of the error of the library.
    """
    try:
        yield
    except (MoshijaxError, MemoryError, PermissionError, jax.errors.JaxRuntimeError):
        raise
    except Exception as error:
        step = int(checkpoint.name)
        what = " ".join((str(error) or type(error).__name__).split(" [tensorstore_spec=")[0].split())
        shown = what if len(what) <= _SHOWN_FAULT else f"{what[:_SHOWN_FAULT]} ..."
        others = [other for other in steps if other < step]
        remedy = (
            f"move {checkpoint} away, then checkpoint {max(others)} is used"
            if others
            else "there is none before it: train again in another run directory"
        )
        fault = f"checkpoint {step} of {checkpoint.parent.parent} is damaged ({shown})"
        raise DamagedCheckpoint(checkpoint, fault, remedy) from error


@contextlib.contextmanager
def quiet_orbax() -> Iterator[None]:
    """Silence Orbax's own log.

    What goes wrong in its threads is raised at the next save or wait, and reported once. That not all items of a
    checkpoint are read is meant.
    """

    def others(record: logging.LogRecord) -> bool:
        return "orbax" not in Path(record.pathname).parts

    logger = logging.getLogger("absl")
    logger.addFilter(others)
    try:
        yield
    finally:
        logger.removeFilter(others)


def tree_of(metadata: Any, item: str) -> Any:
    """Return the tree of the leaves' metadata of an item of a checkpoint.

    Raises:
      ValueError: the checkpoint has no such item.
    """
    if metadata.get(item) is None:
        raise ValueError(f"its {item} is missing")
    return metadata[item].tree


def verify_item(found: Any, item: str) -> None:
    """Check that an item of a checkpoint, read with its meta, is what was written.

    Raises:
      ValueError: it is not, or the meta has no checksums of it.
    """
    sums = found[META_ITEM].get(CHECKSUMS) if isinstance(found[META_ITEM], dict) else None
    if not isinstance(sums, dict) or not isinstance(sums.get(item), dict):
        raise ValueError(f"its meta has no checksums of its {item}")
    checksums.verify(found[item], sums[item])


def is_run(path: str | Path) -> bool:
    """Return whether `path` is the directory of a run that has begun to save checkpoints."""
    return (Path(path) / CHECKPOINTS).is_dir()


def load_run(run_dir: str | Path, step: int | None = None) -> RunModel:
    """Read the model of a run.

    Args:
      run_dir: the directory of the run.
      step: steps done at the checkpoint to read; default: the best where the run keeps it, else the newest.

    Raises:
      DataError: this is no run directory, or it has no such checkpoint.
    """
    family, config, variables, found = read_model(run_dir, step)
    params = family.from_training(variables["params"], variables["model_state"])
    return RunModel(family, config, params, found, tokenizer_in(run_dir))


def open_run(run_dir: str | Path) -> OpenedModel:
    """Open the model of a run, at its best checkpoint where it keeps that, else at its newest complete one.

    Raises:
      DataError: this is no run directory, or it has no complete checkpoint.
    """
    run = load_run(run_dir)
    return run.family.open_run(run.config, run.params, Path(run_dir), run.tokenizer)


def read_model(run_dir: str | Path, step: int | None = None, shardings: Any = None) -> TrainedModel:
    """Read everything of a run's model that is learnt; of the parameters the running average where the run keeps one.

    Args:
      run_dir: the directory of the run.
      step: steps done at the checkpoint to read; default: the best where the run keeps it, else the newest.
      shardings: of the parameters; default: everything on the first device of this process.

    Raises:
      DataError: this is no run directory, or it has no such checkpoint.
    """
    with _opened(run_dir, step) as (family, config, manager, found):
        abstract = _laid_out(_shapes(manager, found), shardings)
        args = {MODEL_ITEM: ocp.args.StandardRestore(abstract), META_ITEM: ocp.args.JsonRestore()}
        items = manager.restore(found, args=ocp.args.Composite(**args))
        verify_item(items, MODEL_ITEM)
        model = items[MODEL_ITEM]
    params = {**flatten_dict(model["params"]), **flatten_dict(model.get("ema", {}))}
    variables = {"params": unflatten_dict(params), "model_state": model.get("model_state", {})}
    return TrainedModel(family, config, variables, found)


def model_shapes(run_dir: str | Path, step: int | None = None) -> TrainedModel:
    """Return what `read_model` does with shapes and types in place of arrays; no weights are read.

    Raises:
      DataError: this is no run directory, or it has no such checkpoint.
    """
    with _opened(run_dir, step) as (family, config, manager, found):
        model = _shapes(manager, found)
    variables = {"params": model["params"], "model_state": model.get("model_state", {})}
    return TrainedModel(family, config, variables, found)


def read_description(run_dir: str | Path) -> tuple[Family, Any]:
    """Return the family of a run's model, and its config.

    Raises:
      DataError: this is no run directory, its model.json is damaged, or of a model that this version does not know.
    """
    path = Path(run_dir) / MODEL
    if not path.exists():
        raise DataError(f"{run_dir} is not a run directory: it has no {MODEL}; give the --run-dir of a run")
    found = read_record(path)
    kind = found.get("kind")
    if not isinstance(kind, str):
        raise damaged(path, "it names no kind of model")
    family = family_of(kind, path)
    try:
        return family, from_json(family.config_class, found.get("config"), MODEL)
    except ConfigError as error:
        raise damaged(path, str(error)) from None


@contextlib.contextmanager
def _opened(run_dir: str | Path, step: int | None) -> Iterator[tuple[Family, Any, ocp.CheckpointManager, int]]:
    """Family and config of a run's model, its checkpoints, and the step of the one to read."""
    path = Path(run_dir)
    family, config = read_description(path)
    remedy = f"train it first: moshijax train RECIPE --run-dir {path}"
    if not is_run(path):
        raise DataError(f"{path} has no checkpoint yet; {remedy}")
    # Read only: a run that is still training must not lose the checkpoint that it is writing.
    options = ocp.CheckpointManagerOptions(create=False, read_only=True, save_interval_steps=0)
    handlers = {MODEL_ITEM: ocp.StandardCheckpointHandler(), META_ITEM: ocp.JsonCheckpointHandler()}
    folder = (path / CHECKPOINTS).absolute()
    with (
        quiet_orbax(),
        contextlib.closing(ocp.CheckpointManager(folder, options=options, item_handlers=handlers)) as manager,
    ):
        found = _chosen(path, manager) if step is None else step
        if found is None or found not in manager.all_steps():
            wanted = "complete checkpoint" if step is None else f"checkpoint of step {step}"
            raise DataError(f"{path} has no {wanted}; {remedy}")
        with reading((path / CHECKPOINTS / str(found)), manager.all_steps()):
            yield family, config, manager, found


def _chosen(path: Path, manager: ocp.CheckpointManager) -> int | None:
    """The step of the checkpoint that is the run's model: the best one of a run that keeps it, else the newest."""
    newest = manager.latest_step()
    if newest is None:
        return None
    with reading(path / CHECKPOINTS / str(newest), manager.all_steps()):
        meta = manager.restore(newest, args=ocp.args.Composite(**{META_ITEM: ocp.args.JsonRestore()}))[META_ITEM]
        return int(meta[BEST]["step"]) if BEST in meta else newest


def _shapes(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """Shapes and types of params, model_state and ema of a checkpoint (those that it has)."""
    found = tree_of(manager.item_metadata(step), MODEL_ITEM)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), found)


def _laid_out(shapes: dict[str, Any], shardings: Any) -> dict[str, Any]:
    """The same with a sharding for every leaf: that of its parameter, else the first device of this process."""
    one = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    of_parameters = {} if shardings is None else flatten_dict(shardings)

    def one_tree(tree: dict[str, Any], given: dict[tuple[str, ...], Any]) -> dict[str, Any]:
        flat = {
            path: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=given.get(path, one))
            for path, leaf in flatten_dict(tree).items()
        }
        return unflatten_dict(flat)

    return {name: one_tree(tree, of_parameters if name in ("params", "ema") else {}) for name, tree in shapes.items()}

"""Write the streaming artifact: exported programs, one weights file, text pieces and `artifact.json`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import jax
import numpy as np
from jax import export as jax_export

import moshijax
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.export import manifest as manifests

if TYPE_CHECKING:
    Specs = dict[str, jax.ShapeDtypeStruct]

PROGRAMS = ("init_state", "step", "step_tokens")


class Programs(Protocol):
    """The pure functions of an artifact; flat dicts of arrays everywhere."""

    def init_state(self, batch: int) -> dict[str, Any]: ...
    def step(self, weights: Any, state: Any, inputs: Any) -> tuple[Any, Any]: ...
    def step_tokens(self, weights: Any, state: Any, inputs: Any) -> tuple[Any, Any]: ...
    def input_specs(self, program: str, batch: int) -> Specs: ...


@dataclass(frozen=True)
class Contents:
    """Everything an artifact is written from.

    programs: platform -> Programs. weights: flat name -> array as stored. compute_dtypes: platform -> {stored dtype:
    dtype the program takes}. description: the config, layout, audio, text and sampling sections of `artifact.json`.
    """

    programs: Mapping[str, Programs]
    weights: Mapping[str, np.ndarray]
    compute_dtypes: Mapping[str, Mapping[str, str]]
    pieces: Sequence[str]
    description: Mapping[str, Any]


def check_request(platforms: Sequence[str], batches: Sequence[int]) -> None:
    """Raises: ConfigError on unknown platforms or batch sizes that are not positive."""
    for platform in platforms:
        if platform not in manifests.PLATFORMS:
            raise ConfigError(f"unknown platform {platform!r}; choose from {', '.join(manifests.PLATFORMS)}")
    if not platforms or not batches or min(batches) < 1:
        raise ConfigError(
            f"platforms={list(platforms)} and batches={list(batches)} must name at least one, batches > 0"
        )


def write(
    contents: Contents,
    out_dir: str | Path,
    batches: Sequence[int] = (1,),
    overwrite: bool = False,
    progress: Callable[[str], None] = lambda message: None,
) -> Path:
    """Export every program for every platform and batch size and write the artifact directory.

    Written to a temporary directory beside `out_dir` and renamed when complete. `progress` is told of every file.
    Raises: ConfigError (`out_dir` exists and `overwrite` is false), MoshijaxError (disk full, not writable).
    """
    out_dir = Path(out_dir)
    check_request(tuple(contents.programs), batches)
    if out_dir.exists() and not overwrite:
        raise ConfigError(f"{out_dir} exists; choose another path or remove it first")
    if out_dir.exists() and any(out_dir.iterdir()) and not (out_dir / manifests.MANIFEST).is_file():
        raise ConfigError(f"{out_dir} exists and is not an artifact; choose another path")
    with _staging(out_dir) as staging:
        progress(manifests.WEIGHTS)
        _write_weights(contents.weights, staging / manifests.WEIGHTS)
        _write_json(staging / manifests.TEXT_PIECES, list(contents.pieces))
        exported: dict[str, jax_export.Exported] = {}
        for platform, programs in contents.programs.items():
            weight_specs = {
                name: jax.ShapeDtypeStruct(value.shape, contents.compute_dtypes[platform][str(value.dtype)])
                for name, value in contents.weights.items()
            }
            for batch in batches:
                for name in PROGRAMS:
                    file = manifests.program_file(name, platform, batch)
                    progress(file)
                    exported[name] = _export(name, programs, platform, batch, weight_specs)
                    (staging / file).write_bytes(exported[name].serialize())
        description = {
            "format": manifests.FORMAT,
            "schema_version": manifests.SCHEMA_VERSION,
            "moshijax_version": moshijax.__version__,
            "jax": {
                "exported_with": jax.__version__,
                "calling_convention_version": exported["step"].calling_convention_version,
                "tried": list(manifests.TRIED_JAX),
            },
            "platforms": list(contents.programs),
            "batches": sorted(set(batches)),
            **contents.description,
            **_interface(exported),
            "weights": {
                "file": manifests.WEIGHTS,
                "program_dtypes": {platform: dict(map_) for platform, map_ in contents.compute_dtypes.items()},
                "tensors": {
                    name: {"shape": list(value.shape), "dtype": str(value.dtype)}
                    for name, value in contents.weights.items()
                },
            },
        }
        description["files"] = {path.name: manifests.file_record(path) for path in sorted(staging.iterdir())}
        _write_json(staging / manifests.MANIFEST, description)
    return out_dir


def _export(name: str, programs: Programs, platform: str, batch: int, weight_specs: Specs) -> jax_export.Exported:
    """One program for one platform and batch size; proves that every state array is donated."""
    if name == "init_state":
        return jax_export.export(jax.jit(lambda: programs.init_state(batch)), platforms=(platform,))()
    state_specs = jax.eval_shape(lambda: programs.init_state(batch))
    inputs = programs.input_specs(name, batch)
    function = jax.jit(getattr(programs, name), donate_argnums=1)
    exported = jax_export.export(function, platforms=(platform,))(weight_specs, state_specs, inputs)
    new_state, _ = jax.tree.unflatten(exported.out_tree, exported.out_avals)
    for key, spec in state_specs.items():
        if (new_state[key].shape, new_state[key].dtype) != (spec.shape, spec.dtype):
            raise AssertionError(f"{name} changes state {key} from {spec} to {new_state[key]}")
    donated = exported.mlir_module().count("tf.aliasing_output")
    if donated != len(state_specs):
        raise AssertionError(f"{name} donates {donated} of {len(state_specs)} state arrays")
    return exported


def _interface(exported: Mapping[str, jax_export.Exported]) -> dict[str, Any]:
    """Names, shapes (None = batch) and dtypes of state, inputs and outputs."""

    def rows(specs: Specs) -> dict[str, Any]:
        return {name: {"shape": [None, *spec.shape[1:]], "dtype": str(spec.dtype)} for name, spec in specs.items()}

    inputs, outputs = {}, {}
    for name in PROGRAMS[1:]:
        args, _ = jax.tree.unflatten(exported[name].in_tree, exported[name].in_avals)
        inputs[name] = rows(args[2])
        state, out = jax.tree.unflatten(exported[name].out_tree, exported[name].out_avals)
        outputs[name] = rows(out)
    return {"state": rows(state), "inputs": inputs, "outputs": outputs}


@contextlib.contextmanager
def _staging(out_dir: Path) -> Iterator[Path]:
    """A temporary directory beside `out_dir` that takes its name when the block ends well, and vanishes otherwise."""
    try:
        out_dir.parent.mkdir(parents=True, exist_ok=True)
        staging = Path(tempfile.mkdtemp(prefix=f".{out_dir.name}.", dir=out_dir.parent))
    except OSError as error:
        raise MoshijaxError(f"cannot write {out_dir}: {error.strerror}; choose a writable path") from None
    try:
        yield staging
        staging.chmod(0o755)
        if out_dir.exists():
            retired = staging.with_name(staging.name + ".old")
            os.rename(out_dir, retired)
            os.rename(staging, out_dir)
            shutil.rmtree(retired)
        else:
            os.rename(staging, out_dir)
    except OSError as error:
        raise MoshijaxError(
            f"cannot write {out_dir}: {error.strerror}; free some space or choose another path"
        ) from None
    finally:
        shutil.rmtree(staging, ignore_errors=True)


def _write_weights(weights: Mapping[str, np.ndarray], path: Path) -> None:
    from safetensors import SafetensorError
    from safetensors.numpy import save_file

    try:
        save_file({name: np.ascontiguousarray(value) for name, value in weights.items()}, path)
    except SafetensorError as error:
        raise MoshijaxError(f"cannot write {path.name}: {error}; free some space or choose another path") from None


def _write_json(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")

"""Exported programs on this machine: an artifact's files, its weights on the device, and its functions, compiled."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.runtime import manifest

if TYPE_CHECKING:
    Arrays = dict[str, jax.Array]
    Specs = Mapping[str, tuple[tuple[int, ...], str]]


def opened(path: Path, description: dict[str, Any], platform: str | None) -> str:
    """Check that an artifact was made for this jax and a platform, by default what jax finds here; return the platform.

    Raises:
      ConfigError: it was not.
    """
    manifest.check_jax(path, description, jax.__version__)
    platform = platform or local_platform()
    if platform not in description["platforms"]:
        raise ConfigError(
            f"{path} was made for {', '.join(description['platforms'])}, not for {platform}; rebuild it from itself: "
            f"moshijax export {path} {path}-{platform} --platforms {platform}"
        )
    return platform


def read_program(path: Path) -> jax.export.Exported:
    """Read a program from its file, which has been checked.

    Raises:
      DataError: it is none.
    """
    try:
        return jax.export.deserialize(bytearray(path.read_bytes()))
    except Exception:  # whatever flatbuffers and jax make of bytes that are no program
        raise DataError(f"{path} is no exported program; copy the artifact again or export it again") from None


def local_platform() -> str:
    """Return the platform jax computes on here, by the names artifacts use: cpu, cuda or tpu."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def _device(platform: str) -> jax.Device:
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        raise ConfigError(
            f"jax {jax.__version__} finds no {platform} device here, only {local_platform()}; omit --platform, or "
            f"install jax for {platform}"
        ) from None


class Program:
    """One exported function, compiled once for its fixed shapes, so that it can never compile again.

    `program(weights, state, inputs)` returns `(state, outputs)`, all of them flat dicts of arrays. The state is
    donated: the one that was passed in is gone afterwards.
    """

    def __init__(self, name: str, compiled: Any, state_specs: Specs, specs: Specs, neutral: Callable[[str], float]):
        self.name, self.compiled, self._neutral = name, compiled, neutral
        self.state_specs, self.specs = state_specs, specs  # of the state and of the inputs: {name: (shape, dtype)}

    def __call__(
        self, weights: Mapping[str, Any], state: Mapping[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[Arrays, Arrays]:
        """Run the program.

        Raises:
          ConfigError: inputs of other names, shapes or dtypes than the program was exported for.
        """
        self.check(inputs)
        return self.compiled(weights, state, dict(inputs))

    def inputs(self) -> dict[str, np.ndarray]:
        """Return neutral inputs to fill in: nobody active, nothing forced, the artifact's default sampling."""
        return {name: np.full(shape, self._neutral(name), dtype) for name, (shape, dtype) in self.specs.items()}

    def check(self, inputs: Mapping[str, Any]) -> None:
        """Compare names, shapes and dtypes of inputs with what the program was exported for.

        Raises:
          ConfigError: they differ.
        """
        if set(self.specs) != set(inputs):
            raise ConfigError(
                f"inputs of {self.name} must be {', '.join(sorted(self.specs))}; missing: "
                f"{sorted(set(self.specs) - set(inputs))}, unknown: {sorted(set(inputs) - set(self.specs))}"
            )
        for name, (shape, dtype) in self.specs.items():
            value = inputs[name]
            if tuple(np.shape(value)) != shape or str(value.dtype) != dtype:
                raise ConfigError(
                    f"input {name} of {self.name} must be {dtype} {list(shape)}, got {value.dtype} "
                    f"{list(np.shape(value))}"
                )


class Programs:
    """The programs and weights of an artifact of any kind.

    Attributes:
      path, manifest, platform: where it is, the content of `artifact.json`, and where it runs.
      weights: {name: array} on the device, as the programs take them.
      pieces: the text of every token id.
      compared: programs whose inputs and outputs are compared with `artifact.json`.
      sampled: the program that takes sampling parameters.
    """

    compared: ClassVar[tuple[str, ...]] = ()
    sampled: ClassVar[str]

    def __init__(self, path: Path, description: dict[str, Any], platform: str, verify: bool = True):
        self.path, self.manifest, self.platform = path, description, platform
        self._verify, self._device = verify, _device(platform)
        self.pieces = manifest.read_pieces(path, description, digest=verify)
        self.weights = self._load_weights()
        self._programs: dict[tuple[str, int, int | None], Program] = {}

    def program(self, name: str, batch: int = 1, length: int | None = None) -> Program:
        """Return a program; it is read from its file, checked and compiled the first time.

        Args:
          name: as docs/serving.md lists them.
          batch: its rows.
          length: what it takes at once, one of `lengths(name)`; None where it has no lengths.

        Raises:
          ConfigError: the artifact has no such program.
          DataError: its file is missing or damaged.
        """
        key = (name, batch, length)
        if key not in self._programs:
            self._programs[key] = self._compile(*key)
        return self._programs[key]

    def init_state(self, batch: int = 1) -> Arrays:
        """Return a fresh state: a flat dict of arrays, each with leading axis B."""
        return self.program("init_state", batch).compiled()

    def lengths(self, name: str) -> list[int]:
        """Return the lengths that a program was exported for, the shortest first."""
        return self.manifest["lengths"].get(name, [])

    def file(self, name: str) -> Path:
        """Return the path of one of the artifact's files, checked.

        Raises:
          DataError: the file is missing or damaged.
        """
        return manifest.check_file(self.path, self.manifest, name, digest=self._verify)

    def _load_weights(self) -> Arrays:
        from safetensors import SafetensorError, safe_open

        path = self.file(manifest.WEIGHTS)
        dtypes = self.manifest["weights"]["program_dtypes"][self.platform]
        weights = {}
        try:
            with safe_open(path, framework="numpy") as file:
                for name, spec in self.manifest["weights"]["tensors"].items():
                    tensor = file.get_tensor(name)
                    if list(tensor.shape) != spec["shape"]:
                        raise DataError(
                            f"{path}: {name} is {list(tensor.shape)}, {manifest.MANIFEST} says {spec['shape']}; copy "
                            "the artifact again or export it again"
                        )
                    weights[name] = jax.device_put(tensor.astype(dtypes[spec["dtype"]], copy=False), self._device)
        except SafetensorError as error:
            raise DataError(f"{path} cannot be read ({error}); copy the artifact again or export it again") from None
        return weights

    def _compile(self, name: str, batch: int, length: int | None) -> Program:
        if name in ("step", "step_tokens", "place") and batch not in self.manifest["batches"]:
            raise ConfigError(
                f"{self.path} was made for batch sizes {', '.join(map(str, self.manifest['batches']))}, not for "
                f"{batch}; rebuild it from itself: moshijax export {self.path} {self.path}-b{batch} --batch {batch}"
            )
        path = self.file(manifest.program_file(name, self.platform, batch, length))
        exported = read_program(path)
        # Donation is not part of the file's calling side: without donate_argnums the state would be copied.
        call = jax.jit(exported.call, donate_argnums=() if name == "init_state" else 1)
        args, kwargs = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        with jax.default_device(self._device):
            compiled = call.lower(*args, **kwargs).compile()
        specs = [{key: (tuple(v.shape), str(v.dtype)) for key, v in part.items()} for part in args[1:]] or [{}, {}]
        if name in self.compared:
            self._check_interface(name, path, exported, batch)
        return Program(name, compiled, *specs, self._neutral)

    def _check_interface(self, name: str, path: Path, exported: jax.export.Exported, batch: int) -> None:
        """Compare what a program takes and gives with what `artifact.json` says, from which calls are laid out."""
        (*_, inputs), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
        _, outputs = jax.tree.unflatten(exported.out_tree, exported.out_avals)
        for side, specs in (("inputs", inputs), ("outputs", outputs)):
            said = {
                key: ([batch if size is None else size for size in spec["shape"]], spec["dtype"])
                for key, spec in self.manifest[side][name].items()
            }
            if said != {key: (list(spec.shape), str(spec.dtype)) for key, spec in specs.items()}:
                raise DataError(
                    f"{path} has other {side} than {manifest.MANIFEST} says; copy the artifact again or export it again"
                )

    def _neutral(self, name: str) -> float:
        """Return the value of an input that asks for nothing."""
        return self.manifest["sampling"]["defaults"].get(name, 0)

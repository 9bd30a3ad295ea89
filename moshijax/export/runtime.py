"""Run an exported artifact. Needs numpy, jax, flatbuffers and safetensors; no model code is imported.

    program = load("artifact", batch=4)
    row = program.open(seed=7, sampling={"temperature": 0.0})
    frame = program.step(pcm_BN)              # numpy [4, frame_size] in [-1, 1]
    frame.pcm[row], frame.text_token[row], frame.ready[row]
    program.close(row)

`program.step(weights, state, inputs)` with three arguments is the exported pure function itself.
`python -m moshijax.export.runtime ARTIFACT --user IN.wav --out OUT.wav` plays a recording through it.
"""

from __future__ import annotations

import difflib
import itertools
import json
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np

from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.export import manifest as manifests

UNGENERATED = -2  # the same id as in moshijax.lm.tokens, which this module must not import
SAMPLING_INPUTS = ("temperature", "text_temperature", "top_k", "text_top_k", "pad_bonus")


@dataclass(frozen=True)
class Row:
    """A call's place in the batch; usable as an index: `frame.pcm[row]`. A closed row's handle stays closed."""

    slot: int
    serial: int

    def __index__(self) -> int:
        return self.slot


@dataclass(frozen=True)
class Frame:
    """What one step returned, on the host.

    pcm [B, frame_size] float32 or None (recognition), zero where not ready; text_token [B] and codes [B, K] int32,
    UNGENERATED (-2) where not ready; ready [B] bool; index [B]: the grid column each row returned; seconds: wall time.
    """

    pcm: np.ndarray | None
    text_token: np.ndarray
    codes: np.ndarray
    ready: np.ndarray
    index: np.ndarray
    seconds: float


@dataclass
class _Call:
    """Host-side record of an open row."""

    row: Row
    seed: np.ndarray
    sampling: dict[str, float]
    primed: bool = False
    steps: int = 0  # executed steps since the reset
    given: deque = field(default_factory=deque)  # columns that step_tokens still has to feed
    force: deque = field(default_factory=deque)  # (text, codes) of the coming executed steps


def load(artifact: str | Path, batch: int, platform: str | None = None, verify: bool = True) -> Program:
    """Load the artifact's programs for `batch` rows on this machine.

    `platform` is cpu, cuda or tpu (default: what jax finds here). `verify=False` skips the sha256 of the weights, which
    takes seconds per 10 GB; sizes are always compared.
    Raises: ConfigError (not an artifact, platform, batch size or jax version it was not made for), DataError (damaged).
    """
    artifact = Path(artifact)
    manifest = manifests.read(artifact)
    manifests.check_jax(artifact, manifest, jax.__version__)
    platform = platform or local_platform()
    if platform not in manifest["platforms"]:
        raise ConfigError(
            f"{artifact} was made for {', '.join(manifest['platforms'])}, not for {platform}; rebuild it from itself: "
            f"moshijax export {artifact} {artifact}-{platform} --platforms {platform}"
        )
    if batch not in manifest["batches"]:
        raise ConfigError(
            f"{artifact} was made for batch sizes {', '.join(map(str, manifest['batches']))}, not for {batch}; rebuild "
            f"it from itself: moshijax export {artifact} {artifact}-b{batch} --batch {batch}"
        )
    return Program(artifact, manifest, batch, platform, verify)


def local_platform() -> str:
    """The platform jax computes on here, by the names artifacts use: cpu, cuda or tpu."""
    backend = jax.default_backend()
    return "cuda" if backend == "gpu" else backend


def _device(platform: str) -> jax.Device:
    try:
        return jax.devices(platform)[0]
    except RuntimeError:
        raise ConfigError(
            f"jax {jax.__version__} finds no {platform} device here, only {local_platform()}; leave --platform out, or "
            f"install jax for {platform}"
        ) from None


class Program:
    """The artifact's programs for one batch size, its weights on the device, and the rows of the batch."""

    def __init__(self, artifact: Path, manifest: dict[str, Any], batch: int, platform: str, verify: bool = True):
        self.artifact = artifact
        self.manifest = manifest
        self.batch = batch
        self.platform = platform
        self._verify = verify
        self._device = _device(platform)
        self.frame_size: int = manifest["audio"]["frame_size"]
        self.sample_rate: int = manifest["audio"]["sample_rate"]
        self.max_delay: int = manifest["layout"]["max_delay"]
        self.num_streams: int = len(manifest["layout"]["streams"])
        self.has_pcm_in = "pcm" in manifest["inputs"]["step"]
        self.has_pcm_out = "pcm" in manifest["outputs"]["step"]
        self.pieces: list[str] = json.loads(self._file(manifests.TEXT_PIECES).read_text(encoding="utf-8"))
        self.weights = self._load_weights()
        self._compiled: dict[str, Any] = {}
        self.state = self.init_state()
        self._calls: dict[int, _Call] = {}
        self._serial = itertools.count()
        self._compile("step")

    # ---- the pure functions -------------------------------------------------------------------------------------

    def init_state(self) -> dict[str, jax.Array]:
        """A fresh state for all rows: a flat dict of arrays, each with leading axis B."""
        return self._compile("init_state")()

    def step_tokens(
        self, weights: Mapping[str, Any], state: dict[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]:
        """One column to one column, without the codec. `state` is donated. Returns (state, outputs)."""
        self.check_inputs("step_tokens", inputs)
        return self._compile("step_tokens")(weights, state, dict(inputs))

    def inputs(self, program: str = "step") -> dict[str, np.ndarray]:
        """Neutral inputs of a program: nobody active, nothing forced, the artifact's default sampling."""
        values: dict[str, np.ndarray] = {}
        defaults = self.manifest["sampling"]["defaults"]
        for name, spec in self.manifest["inputs"][program].items():
            fill = UNGENERATED if name.startswith("force_") else defaults.get(name, 0)
            values[name] = np.full((self.batch, *spec["shape"][1:]), fill, spec["dtype"])
        return values

    def check_inputs(self, program: str, inputs: Mapping[str, Any]) -> None:
        """Compare names, shapes and dtypes with what the program was exported for. Raises: ConfigError."""
        specs = self.manifest["inputs"][program]
        if set(specs) != set(inputs):
            raise ConfigError(
                f"inputs of {program} must be {', '.join(sorted(specs))}; missing: {sorted(set(specs) - set(inputs))}, "
                f"unknown: {sorted(set(inputs) - set(specs))}"
            )
        for name, spec in specs.items():
            shape, dtype = (self.batch, *spec["shape"][1:]), spec["dtype"]
            if tuple(np.shape(inputs[name])) != shape or str(inputs[name].dtype) != dtype:
                raise ConfigError(
                    f"input {name} of {program} must be {dtype} {list(shape)}, got {inputs[name].dtype} "
                    f"{list(np.shape(inputs[name]))}"
                )

    # ---- rows ----------------------------------------------------------------------------------------------------

    @property
    def free_rows(self) -> int:
        """How many more calls can be opened."""
        return self.batch - len(self._calls)

    def open(self, seed: int = 0, sampling: Mapping[str, float] | None = None, prompt: np.ndarray | None = None) -> Row:
        """Start a call in a free row. Its first executed step, which only primes the model, is run by the next `step`.

        seed: any integer up to 64 bits. sampling: any of temperature, text_temperature, top_k, text_top_k, pad_bonus;
        the rest are the artifact's defaults. prompt: int32 [K, T], columns the call begins with, not delayed;
        UNGENERATED entries are left to the model.
        Raises: ConfigError on values out of range; MoshijaxError if every row is open.
        """
        checked = self.check_sampling(sampling or {})
        given, force = self._prompt(prompt)
        if not self.free_rows:
            raise MoshijaxError(f"all {self.batch} rows are open; close one, or load the artifact with a larger batch")
        slot = next(slot for slot in range(self.batch) if slot not in self._calls)
        row = Row(slot, next(self._serial))
        self._calls[slot] = _Call(row, split_seed(seed), checked, given=given, force=force)
        return row

    def close(self, row: Row) -> None:
        """End a call and free its row. Closing twice does nothing."""
        if self.is_open(row):
            del self._calls[row.slot]

    def is_open(self, row: Row) -> bool:
        """Whether the call of this handle is still going on."""
        call = self._calls.get(row.slot)
        return call is not None and call.row == row

    @overload
    def step(self, pcm_BN: np.ndarray | None = None, *, active: np.ndarray | None = None) -> Frame: ...

    @overload
    def step(
        self, weights: Mapping[str, Any], state: dict[str, Any], inputs: Mapping[str, Any]
    ) -> tuple[dict[str, jax.Array], dict[str, jax.Array]]: ...

    def step(self, *args: Any, active: np.ndarray | None = None) -> Any:
        """`step(pcm_BN, active=None)`: one frame of every open row. `step(weights, state, inputs)`: the pure function.

        pcm_BN [B, frame_size] float32 in [-1, 1], closed rows ignored; omitted if the layout has no audio in. `active`
        [B] bool pauses open rows. Rows opened since the last step are reset and primed first. Returns a Frame.
        The pure function donates `state` and returns (state, outputs).
        Raises: ConfigError (shape, no open row), DataError (samples that are not finite).
        """
        if len(args) == 3:
            weights, state, inputs = args
            self.check_inputs("step", inputs)
            return self._compile("step")(weights, state, dict(inputs))
        return self._step_rows(*args, active=active)

    def check_sampling(self, sampling: Mapping[str, float]) -> dict[str, float]:
        """The artifact's sampling defaults updated by `sampling`, all within their limits. Raises: ConfigError."""
        for name in sampling:
            if name not in SAMPLING_INPUTS:
                near = difflib.get_close_matches(name, SAMPLING_INPUTS, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(SAMPLING_INPUTS)}"
                raise ConfigError(f"unknown sampling field {name!r}{hint}")
        values = {**self.manifest["sampling"]["defaults"], **sampling}
        for name, value in values.items():
            low, high = self.manifest["sampling"]["limits"][name]
            if not (np.isfinite(value) and (low is None or value >= low) and (high is None or value <= high)):
                bounds = f"at least {low}" if high is None else f"{low} to {high}"
                raise ConfigError(f"{name}={value} is outside what the artifact allows ({bounds})")
        return values

    # ---- inside --------------------------------------------------------------------------------------------------

    def _step_rows(self, pcm_BN: np.ndarray | None = None, active: np.ndarray | None = None) -> Frame:
        if not self._calls:
            raise ConfigError("no row is open; call program.open() before program.step()")
        inputs = self.inputs("step")
        live = np.zeros(self.batch, bool)
        live[list(self._calls)] = True
        if active is not None:
            live &= np.asarray(active, bool)
        if self.has_pcm_in:
            pcm_BN = np.asarray(pcm_BN, np.float32)
            if pcm_BN.shape != (self.batch, self.frame_size):
                raise ConfigError(f"pcm must be [{self.batch}, {self.frame_size}], got {list(pcm_BN.shape)}")
            bad = live & ~np.isfinite(pcm_BN).all(axis=1)
            if bad.any():
                raise DataError(f"pcm of row {int(bad.argmax())} holds NaN or Inf; samples must be finite, in [-1, 1]")
            inputs["pcm"] = np.where(live[:, None], pcm_BN, np.float32(0))
        self._prime()
        started = time.perf_counter()
        outputs = self._execute("step", inputs, live)
        frame = Frame(
            pcm=outputs.get("pcm"),
            text_token=outputs["text_token"],
            codes=outputs["codes"],
            ready=outputs["ready"],
            index=self._index(),
            seconds=time.perf_counter() - started,
        )
        return frame

    def _prime(self) -> None:
        """Run the first executed step, and the prompt, of rows opened since the last step."""
        fresh = [call for call in self._calls.values() if not call.primed]
        if not fresh:
            return
        plain = np.zeros(self.batch, bool)
        prompted = np.zeros(self.batch, bool)
        for call in fresh:
            (prompted if call.given else plain)[call.row.slot] = True
            call.primed = True
        if plain.any():
            self._execute("step", {**self.inputs("step"), "reset": plain}, plain)
        reset = prompted
        while prompted.any():
            inputs = {**self.inputs("step_tokens"), "reset": reset}
            for slot in np.flatnonzero(prompted):
                inputs["given"][slot] = self._calls[int(slot)].given.popleft()
            self._execute("step_tokens", inputs, prompted)
            reset = np.zeros(self.batch, bool)
            prompted = np.array([bool(call and call.given) for call in map(self._calls.get, range(self.batch))])

    def _execute(self, program: str, inputs: dict[str, np.ndarray], active: np.ndarray) -> dict[str, np.ndarray]:
        inputs["active"] = active
        for slot, call in self._calls.items():
            inputs["seed"][slot] = call.seed
            for name, value in call.sampling.items():
                inputs[name][slot] = value
            if active[slot]:
                call.steps += 1
                if call.force:
                    inputs["force_text"][slot], inputs["force_codes"][slot] = call.force.popleft()
        self.check_inputs(program, inputs)
        self.state, outputs = self._compile(program)(self.weights, self.state, inputs)
        names = [name for name in outputs if name not in ("logits", "text_logits")]
        return {name: np.asarray(outputs[name]) for name in names}

    def _index(self) -> np.ndarray:
        index = np.full(self.batch, -1)
        for slot, call in self._calls.items():
            index[slot] = call.steps - 1 - self.max_delay
        return index

    def _prompt(self, prompt: np.ndarray | None) -> tuple[deque, deque]:
        """Prompt columns [K, T] -> what each executed step is given and forced to.

        Executed step n (from 1) samples text of column n - 1 and codebook k of column n - 1 - delay_k, and takes in the
        given rows of column n - 2.
        """
        if prompt is None:
            return deque(), deque()
        streams = self.manifest["layout"]["streams"]
        prompt = np.asarray(prompt)
        if prompt.ndim != 2 or len(prompt) != len(streams) or prompt.dtype.kind not in "iu" or not prompt.size:
            raise ConfigError(
                f"a prompt must be integers [{len(streams)}, T] with T > 0, got {prompt.dtype} {list(prompt.shape)}"
            )
        for stream, tokens in zip(streams, prompt, strict=True):
            low = 0 if stream["given"] else UNGENERATED
            bad = tokens[(tokens < low) | (tokens >= stream["card"]) | (tokens == -1)]
            if bad.size:
                raise ConfigError(
                    f"prompt of stream {stream['name']} holds {int(bad[0])}; ids are 0 to {stream['card'] - 1}"
                )
        length = prompt.shape[1]
        audio = [k for k, stream in enumerate(streams) if stream["generated"] and stream["kind"] == "audio"]
        given_rows = [k for k, stream in enumerate(streams) if stream["given"]]

        def token(k: int, column: int) -> int:
            return int(prompt[k, column]) if 0 <= column < length else UNGENERATED

        given = [[max(token(k, n - 2), 0) for k in given_rows] for n in range(1, length + 2)]
        force = [
            (token(0, n - 1), [token(k, n - 1 - streams[k]["delay"]) for k in audio])
            for n in range(1, length + 1 + self.max_delay)
        ]
        return deque(given), deque(force)

    def _file(self, name: str) -> Path:
        return manifests.check_file(self.artifact, self.manifest, name, digest=self._verify)

    def _load_weights(self) -> dict[str, jax.Array]:
        from safetensors import SafetensorError, safe_open

        path = self._file(manifests.WEIGHTS)
        dtypes = self.manifest["weights"]["program_dtypes"][self.platform]
        weights = {}
        try:
            with safe_open(path, framework="numpy") as file:
                for name, spec in self.manifest["weights"]["tensors"].items():
                    tensor = file.get_tensor(name)
                    weights[name] = jax.device_put(tensor.astype(dtypes[spec["dtype"]], copy=False), self._device)
        except SafetensorError as error:
            raise DataError(f"{path} cannot be read ({error}); copy the artifact again or export it anew") from None
        return weights

    def _compile(self, program: str) -> Any:
        """The compiled program: compiled once for its fixed shapes, so that it can never compile again."""
        if program not in self._compiled:
            path = self._file(manifests.program_file(program, self.platform, self.batch))
            exported = jax.export.deserialize(bytearray(path.read_bytes()))
            # Donation is not part of the file's calling side: without donate_argnums the state would be copied.
            call = jax.jit(exported.call, donate_argnums=(1,) if program != "init_state" else ())
            args, kwargs = jax.tree.unflatten(exported.in_tree, exported.in_avals)
            with jax.default_device(self._device):
                self._compiled[program] = call.lower(*args, **kwargs).compile()
        return self._compiled[program]


def split_seed(seed: int) -> np.ndarray:
    """An integer seed as the two uint32 words (high, low) the step takes. Raises: ConfigError."""
    if not 0 <= seed < 2**64:
        raise ConfigError(f"seed {seed} must be at least 0 and below 2**64")
    return np.array([seed >> 32, seed & 0xFFFFFFFF], np.uint32)


if __name__ == "__main__":
    from moshijax.export.call import main

    raise SystemExit(main())

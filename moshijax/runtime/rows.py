"""Run an exported artifact. Needs numpy, jax, flatbuffers and safetensors; no model code is imported.

    program = load("artifact", batch=4)
    row = program.open(seed=7, sampling={"temperature": 0.0})
    frame = program.step(pcm_BN)              # numpy [4, frame_size] in [-1, 1]
    frame.pcm[row], frame.text_token[row], frame.ready[row]
    program.close(row)

`program.step(weights, state, inputs)` with three arguments is the exported pure function itself.
`python -m moshijax.runtime ARTIFACT --user IN.wav --out OUT.wav` plays a recording through it.
"""

from __future__ import annotations

import difflib
import itertools
import json
import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import jax
import numpy as np

from moshijax import optional
from moshijax.errors import ConfigError, DataError, MoshijaxError
from moshijax.runtime import artifact as manifests
from moshijax.runtime import conditions as condition_values
from moshijax.tokens import UNGENERATED, ZERO

SAMPLING_INPUTS = ("temperature", "text_temperature", "top_k", "text_top_k", "pad_bonus", "guidance")


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
    UNGENERATED (-2) where not ready; ready [B] bool; index [B]: the grid column each row returned; seconds: wall time;
    ended [B] bool: synthesis and translation have said all (None otherwise); extra_heads [B, H, V] or None:
    probabilities of the model's extra heads.
    """

    pcm: np.ndarray | None
    text_token: np.ndarray
    codes: np.ndarray
    ready: np.ndarray
    index: np.ndarray
    seconds: float
    ended: np.ndarray | None = None
    extra_heads: np.ndarray | None = None


@dataclass(frozen=True)
class Word:
    """A word to speak: its text pieces, and the frames after it without another word. One without pieces is a pause."""

    text: str
    pieces: tuple[int, ...]
    padding: int = 0


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
    conditions: dict[str, np.ndarray] = field(default_factory=dict)  # inputs of the program `condition`
    null_until: int = 0  # columns that guidance hides from the second half
    words: deque[Word] = field(default_factory=deque)  # to be spoken
    text_done: bool = True  # no more words will come
    spoken: list[tuple[str, int]] = field(default_factory=list)  # words taken, with their grid columns
    end_of_input: bool = False  # to be told in the next step


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
        self.has_text_in = "word" in manifest["inputs"]["step"]
        self.policy: dict[str, Any] = manifest["config"]["policy"]
        self.pieces: list[str] = json.loads(self._file(manifests.TEXT_PIECES).read_text(encoding="utf-8"))
        self.weights = self._load_weights()
        self._conditions = condition_values.load_defaults(artifact, manifest) if manifest["conditions"] else {}
        self._compiled: dict[str, Any] = {}
        self._tokenizer: Any = None
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
            fill = ZERO if name in ("word", "word_ahead") else fill
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

    def open(
        self,
        seed: int = 0,
        sampling: Mapping[str, float] | None = None,
        prompt: np.ndarray | None = None,
        *,
        conditions: Mapping[str, Any] | None = None,
        words: Sequence[Word] | None = None,
        null_until: int = 0,
    ) -> Row:
        """Start a call in a free row. Its first executed step, which only primes the model, is run by the next `step`.

        seed: any integer up to 64 bits. sampling: any of temperature, text_temperature, top_k, text_top_k, pad_bonus,
        and guidance where the artifact has it; the rest are the artifact's defaults. prompt: int32 [K, T], columns the
        call begins with, not delayed; UNGENERATED entries are left to the model, a text of ZERO is none.
        conditions: {name: value} as `moshijax.runtime.conditions.arrays` takes them, the rest are the artifact's
        defaults. words: what synthesis is to speak; None if they will come through `say`. null_until: columns at the
        beginning that guidance hides from the unconditioned half.
        Raises: ConfigError on values out of range; MoshijaxError if every row is open.
        """
        checked = self.check_sampling(sampling or {})
        given, force = self._prompt(prompt)
        table, values = self.manifest["conditions"], dict(self._conditions)
        for name, value in (conditions or {}).items():
            found = condition_values.arrays(table, name, value)
            values |= {f"condition/{key}": array for key, array in found.items()}
        self._check_words(words or ())
        if not self.free_rows:
            raise MoshijaxError(f"all {self.batch} rows are open; close one, or load the artifact with a larger batch")
        slot = next(slot for slot in range(self.batch) if slot not in self._calls)
        row = Row(slot, next(self._serial))
        self._calls[slot] = _Call(
            row,
            split_seed(seed),
            checked,
            given=given,
            force=force,
            conditions=values,
            null_until=null_until,
            words=deque(words or ()),
            text_done=words is not None,
        )
        return row

    def say(self, row: Row, words: Sequence[Word], done: bool = False) -> None:
        """More words for a call of a synthesis artifact; `done`: they are the last. Raises: ConfigError."""
        self._check_words(words)
        call = self._call(row)
        call.words.extend(words)
        call.text_done = done

    def spoken(self, row: Row) -> list[tuple[str, int]]:
        """The words that the model has begun, with the grid columns in which it did."""
        return list(self._call(row).spoken)

    def end_input(self, row: Row) -> None:
        """Tell a translation in its next step that there is no more to hear; its audio of that step is not heard.

        Raises: ConfigError if the artifact does not translate.
        """
        if "end_of_input" not in self.manifest["inputs"]["step"]:
            raise ConfigError(f"{self.artifact} has no end of input: only translation does")
        self._call(row).end_of_input = True

    def _call(self, row: Row) -> _Call:
        if not self.is_open(row):
            raise ConfigError("the row is closed; open another")
        return self._calls[row.slot]

    def _check_words(self, words: Sequence[Word]) -> None:
        if words and not self.has_text_in:
            raise ConfigError(f"the layout of {self.artifact} takes no text in; only synthesis speaks words")
        card = self.manifest["layout"]["streams"][0]["card"]
        for word in words:
            limit = self.policy["max_pieces"]
            if len(word.pieces) > limit:
                raise ConfigError(
                    f"the word {word.text!r} has {len(word.pieces)} pieces, the artifact takes {limit}; break it up"
                )
            if word.pieces and not 0 <= min(word.pieces) <= max(word.pieces) < card:
                raise ConfigError(f"the word {word.text!r} holds pieces outside 0 to {card - 1}")

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
        known = tuple(self.manifest["sampling"]["limits"])
        for name in sampling:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f"; did you mean {near[0]}?" if near else f"; known: {', '.join(known)}"
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
            ended=outputs.get("ended"),
            extra_heads=outputs.get("extra_heads"),
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
        if self.manifest["conditions"]:
            self._condition(fresh)
        if plain.any():
            self._execute("step", {**self.inputs("step"), "reset": plain}, plain)
        # Where nothing is heard the decoder takes part, so that the prompt's sound goes over into what follows.
        program, reset = "step_tokens" if self.has_pcm_in else "step", prompted
        while prompted.any():
            inputs = {**self.inputs(program), "reset": reset}
            for slot in np.flatnonzero(prompted):
                column = self._calls[int(slot)].given.popleft()
                if "given" in inputs:
                    inputs["given"][slot] = column
            self._execute(program, inputs, prompted)
            reset = np.zeros(self.batch, bool)
            prompted = np.array([bool(call and call.given) for call in map(self._calls.get, range(self.batch))])

    def _condition(self, calls: Sequence[_Call]) -> None:
        """Make the conditions of these calls part of their state."""
        inputs = self.inputs("condition")
        for call in calls:
            inputs["active"][call.row.slot] = True
            for name, value in call.conditions.items():
                inputs[name][call.row.slot] = value
        self.check_inputs("condition", inputs)
        self.state, _ = self._compile("condition")(self.weights, self.state, inputs)

    def tokenize(self, text: str) -> list[int]:
        """Pieces of a text. Raises: ConfigError (no tokenizer in it), MoshijaxError (sentencepiece is missing)."""
        if manifests.TOKENIZER not in self.manifest["files"]:
            raise ConfigError(f"{self.artifact} has no tokenizer, it takes no text; export it again with --tokenizer")
        if self._tokenizer is None:
            sentencepiece = optional.load("sentencepiece")
            self._tokenizer = sentencepiece.SentencePieceProcessor(model_file=str(self._file(manifests.TOKENIZER)))
        return list(self._tokenizer.encode(text))

    def encode(self, pcm: np.ndarray) -> np.ndarray:
        """Codes `[Q, T]` int32 of a waveform `[N]`, by the artifact's own codec; N is filled up to whole frames.

        The encoder of a free row does it: call it before the row is opened, not in between its steps.
        Raises: ConfigError if the artifact has no such program, DataError if samples are not finite; MoshijaxError if
        every row is open.
        """
        if "encode" not in self.manifest["inputs"]:
            raise ConfigError(f"{self.artifact} takes no voice prompt: its layout has no voice to continue")
        pcm = np.asarray(pcm, np.float32)
        if pcm.ndim != 1 or not pcm.size or not np.isfinite(pcm).all():
            raise DataError(f"a waveform must be finite samples [N], N > 0; got {list(pcm.shape)}")
        if not self.free_rows:
            raise MoshijaxError(f"all {self.batch} rows are open; close one first")
        slot = next(slot for slot in range(self.batch) if slot not in self._calls)
        frames = np.pad(pcm, (0, -len(pcm) % self.frame_size)).reshape(-1, self.frame_size)
        codes = []
        for index, frame in enumerate(frames):
            inputs = self.inputs("encode")
            inputs["active"][slot], inputs["reset"][slot], inputs["pcm"][slot] = True, index == 0, frame
            self.state, outputs = self._compile("encode")(self.weights, self.state, inputs)
            codes.append(np.asarray(outputs["codes"])[slot])
        return np.stack(codes, axis=1)

    def _execute(self, program: str, inputs: dict[str, np.ndarray], active: np.ndarray) -> dict[str, np.ndarray]:
        inputs["active"] = active
        for slot, call in self._calls.items():
            inputs["seed"][slot] = call.seed
            for name, value in call.sampling.items():
                inputs[name][slot] = value
            if "null_until" in inputs:
                inputs["null_until"][slot] = call.null_until
            if self.has_text_in:
                self._next_word(call, inputs, slot)
            if active[slot]:
                call.steps += 1
                if call.force:
                    inputs["force_text"][slot], inputs["force_codes"][slot] = call.force.popleft()
                if call.end_of_input:
                    inputs["end_of_input"][slot], call.end_of_input = True, False
        self.check_inputs(program, inputs)
        self.state, outputs = self._compile(program)(self.weights, self.state, inputs)
        names = [name for name in outputs if name not in ("logits", "text_logits")]
        found = {name: np.asarray(outputs[name]) for name in names}
        if self.has_text_in:
            for slot in np.flatnonzero(found["word_taken"]):
                call = self._calls[int(slot)]
                word = call.words.popleft()
                if word.pieces:
                    call.spoken.append((word.text, call.steps - 1))
        return found

    def _next_word(self, call: _Call, inputs: dict[str, np.ndarray], slot: int) -> None:
        """Offer the next word, with the one that the second text stream sees ahead of it."""
        look_ahead = self.policy["look_ahead"]
        coming = [word.pieces for word in itertools.islice(call.words, 1, None) if word.pieces][:look_ahead]
        # With more words to come, a word waits for the one to look ahead at.
        inputs["word_waiting"][slot] = bool(call.words) and (call.text_done or len(coming) == look_ahead)
        inputs["text_done"][slot] = call.text_done
        if not call.words:
            return
        word = call.words[0]
        inputs["word"][slot, : len(word.pieces)] = word.pieces
        inputs["word_padding"][slot] = word.padding
        if look_ahead and len(coming) == look_ahead:
            inputs["word_ahead"][slot, : len(coming[-1])] = coming[-1]

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
            bad = tokens[(tokens < low) | (tokens >= stream["card"]) | ((tokens == ZERO) & (stream["kind"] != "text"))]
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

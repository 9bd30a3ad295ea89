"""One frame of a call as pure functions: user audio in, the model's audio and text out.

`CallStep` composes the codec and the language model into the programs of an artifact. At their boundary there are only
flat dicts of arrays, named by path, so that running them needs no class of ours.

The order within a step is fixed: reset, encode, language model, decode. A row's first executed step after a reset only
primes position 0: its audio is ignored, its encoder is not advanced and nothing is returned for it; so the first frame
the encoder sees is the first that the model hears (the generator of `moshi`, `models/lm.py`, ignores the first codes it
is given). The decoder advances only on ready rows. For a row that is given codes in place of audio, `step` is
`step_tokens`: its codec does not advance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from moshijax import codec, lm
from moshijax.errors import ConfigError
from moshijax.lm import conditioning, generation, policies, sampling
from moshijax.nn import quantised
from moshijax.tokens import UNGENERATED

if TYPE_CHECKING:
    from jaxtyping import Array

    Arrays = dict[str, Array]
    Specs = dict[str, jax.ShapeDtypeStruct]


def flatten(tree: Any, prefix: str = "") -> Arrays:
    """Return a pytree as {path: leaf}; paths join the keys of dicts, tuples and dataclasses with '/'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {"/".join([prefix] * bool(prefix) + [_key(key) for key in path]): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise AssertionError("two leaves have the same path")
    return named


def _key(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"no name for tree key {key!r}")


def unflatten_like(tree: Any, named: Arrays, prefix: str = "") -> Any:
    """Invert `flatten` for a tree of the same structure."""
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in flatten(tree, prefix)])


def nested(weights: Arrays) -> dict[str, Any]:
    """Invert `flatten` for parameters."""
    return quantised.from_fields(unflatten_dict(weights, sep="/"))


class Signature(NamedTuple):
    """One program to export.

    Attributes:
      name: of the function.
      batch: its rows.
      length: steps or frames that it takes in a block; None where it takes one, or none.
    """

    name: str
    batch: int
    length: int | None = None


#: Words of a synthesis that one step is offered, so that a step can be sent before the outcome of the last is known.
WORD_SLOTS = 4
#: Frames that one call of `encode` takes.
ENCODE_FRAMES = 16
#: Lengths of `prefill`, in executed steps.
PREFILL_LENGTHS = (16, 64, 256)


@dataclass(frozen=True)
class CallStep:
    """The programs of an artifact for one pair of models (see `moshijax.export.artifact.PureFunctions`).

    Weights are `{"codec/...", "lm/..."}`, each model in its inference layout. Which inputs and outputs there are
    follows from the layout and the policy: without given rows no `pcm` or `given` comes in, without generated audio
    rows no `pcm` goes out.

    Args:
      codec, lm: the configs of the two models.
      top_k_limit: the largest `top_k` and `text_top_k` that may be asked for.
      policy: what the model is used for.
      guidance: compiles classifier-free guidance into the step; its coefficient is only a default.
      prefill_lengths: lengths of the `prefill` programs.

    Raises:
      ConfigError: the codec does not fit the rows and codes of the language model, or the policy its layout.
    """

    codec: codec.MimiConfig
    lm: lm.LMConfig
    top_k_limit: int = 250
    policy: policies.Policy = policies.Conversation()
    guidance: lm.Guidance | None = None
    prefill_lengths: tuple[int, ...] = PREFILL_LENGTHS

    def __post_init__(self) -> None:
        layout, codebooks = self.lm.layout, self.codec.num_codebooks
        remedy = "use the codec the language model was trained with"
        for rows in (self.given_rows, self.voice_rows):
            levels = [layout.streams[row].codebook for row in rows]
            if levels != list(range(len(rows))) or len(rows) > codebooks:
                raise ConfigError(
                    f"the grid has codebooks {levels} of a speaker, the codec {codebooks}: they must be 0, 1, ... and "
                    f"no more than the codec has; {remedy}"
                )
        if (self.given_rows or self.voice_rows) and self.lm.card != self.codec.bins:
            raise ConfigError(
                f"the language model has card={self.lm.card}, the codec {self.codec.bins} codes per codebook; {remedy}"
            )
        self.policy.check(self.lm)
        for conditioner in self.lm.conditioners:
            if isinstance(conditioner, lm.TensorConditioner) and conditioner.length is None:
                raise ConfigError(
                    f"condition {conditioner.name} has no fixed length, which a compiled step needs; give it one at "
                    f"export, with --condition {conditioner.name}=FILE"
                )

    @property
    def given_rows(self) -> tuple[int, ...]:
        """Rows of the grid that come from the user's audio."""
        return self.lm.layout.given_rows

    @property
    def voice_rows(self) -> tuple[int, ...]:
        """Rows of the grid that become the model's voice."""
        return self.lm.layout.model_rows[1:]

    @property
    def takes_words(self) -> bool:
        """Whether the model is told what to say, word by word."""
        return "word" in self.policy.input_specs(1)

    @property
    def takes_voice(self) -> bool:
        """Whether a call can begin with a voice: there is a voice, and it follows something."""
        return bool(self.voice_rows) and (bool(self.given_rows) or self.takes_words)

    def programs(self, batches: Sequence[int]) -> tuple[Signature, ...]:
        """Return every program to export: those that calls share for each batch size, the others for one row."""
        names = ("init_state", "step", "step_tokens", "place")
        shared = [Signature(name, batch) for batch in batches for name in names]
        single = [Signature("init_state", 1)]
        single += [Signature("prefill", 1, length) for length in self.prefill_lengths]
        single += [Signature("condition", 1)] if self.lm.conditioners else []
        single += [Signature("encode", 1, ENCODE_FRAMES)] if self.takes_voice else []
        return tuple(dict.fromkeys([*shared, *single]))

    def input_specs(self, program: Signature) -> Specs:
        """Return shapes and dtypes of the inputs of a program other than `init_state`."""
        spec, batch = jax.ShapeDtypeStruct, program.batch
        match program.name:
            case "place":
                rows = jax.eval_shape(lambda: self.init_state(1))
                return {"slot": spec((), jnp.int32), **{f"row/{name}": value for name, value in rows.items()}}
            case "encode":
                samples = program.length * self.codec.frame_size
                return {"reset": spec((batch,), jnp.bool_), "pcm": spec((batch, samples), jnp.float32)}
            case "condition":
                return self._condition_specs(batch)
            case "prefill":
                return self._prefill_specs(program)
        specs = {
            "active": spec((batch,), jnp.bool_),
            "reset": spec((batch,), jnp.bool_),
            "force_text": spec((batch,), jnp.int32),
            "force_codes": spec((batch, len(self.voice_rows)), jnp.int32),
            **{name: spec(*shape_dtype) for name, shape_dtype in sampling.input_specs(batch).items()},
        }
        if self.guidance is not None:
            specs["guidance"] = spec((batch,), jnp.float32)
            specs["null_until"] = spec((batch,), jnp.int32)
        specs |= {name: spec(*shape_dtype) for name, shape_dtype in self._policy_specs(batch).items()}
        if self.given_rows:
            specs["given"] = spec((batch, len(self.given_rows)), jnp.int32)
            if program.name == "step":
                specs["pcm"] = spec((batch, self.codec.frame_size), jnp.float32)
        return specs

    def _policy_specs(self, batch: int) -> dict[str, tuple[tuple[int, ...], Any]]:
        """Return what the policy takes; of a word that is offered, `WORD_SLOTS` of them."""
        specs = self.policy.input_specs(batch)
        if self.takes_words:
            for name in ("word", "word_ahead", "word_padding", "word_waiting"):
                if name in specs:
                    (_, *shape), dtype = specs[name]
                    specs[name] = ((batch, WORD_SLOTS, *shape), dtype)
            specs["word_number"] = ((batch,), jnp.int32)
        return specs

    def _condition_specs(self, batch: int) -> Specs:
        kinds = ("condition", "null") if self.guidance is not None else ("condition",)
        return {
            f"{kind}/{conditioner.name}{suffix}": jax.ShapeDtypeStruct(*shape_dtype)
            for kind in kinds
            for conditioner in self.lm.conditioners
            for suffix, shape_dtype in conditioning.spec(conditioner, batch).items()
        }

    def _prefill_specs(self, program: Signature) -> Specs:
        spec, batch, length = jax.ShapeDtypeStruct, program.batch, program.length
        codes = spec((batch, len(self.voice_rows), length), jnp.int32)
        specs = {
            "length": spec((batch,), jnp.int32),
            "force_text": spec((batch, length), jnp.int32),
            "force_codes": codes,
        }
        if self.guidance is not None:
            specs["null_until"] = spec((batch,), jnp.int32)
        if self.given_rows:
            specs["given"] = spec((batch, len(self.given_rows), length), jnp.int32)
        elif self.voice_rows:
            specs["voice"] = codes
        return specs

    def init_state(self, batch: int) -> Arrays:
        """Return the state of `batch` rows that have not begun."""
        return flatten(self._init_tree(batch))

    def state_specs(self, program: Signature) -> Specs:
        """Return shapes and dtypes of the state of a program; that of `encode` is an encoder's alone."""
        if program.name == "encode":
            return jax.eval_shape(lambda: flatten(codec.init_encoder_state(self.codec, program.batch)))
        return jax.eval_shape(lambda: self.init_state(program.batch))

    def step(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Take one frame of PCM in and give one out.

        Returns:
          The state and {pcm, text_token, codes, ready}, with what the policy says (such as `ended`) and, where the
          model has them, the probabilities of the extra heads (`extra_heads [B, H, V]`).
        """
        params, tree = nested(weights), self._reset(state, inputs["reset"])
        given_BK = None
        if self.given_rows:
            free = inputs["given"] == UNGENERATED
            hearing = inputs["active"] & (tree["lm"]["offset"] > 0) & jnp.all(free, axis=1)
            if "end_of_input" in inputs:
                hearing = hearing & ~inputs["end_of_input"]
            tree["encoder"], codes_BQT = codec.encode_step(
                self.codec, params["codec"], tree["encoder"], inputs["pcm"], hearing, num_codebooks=len(self.given_rows)
            )
            given_BK = jnp.where(free, codes_BQT[:, :, 0], inputs["given"])
        tree, outputs, _ = self._language_model(params["lm"], tree, inputs, given_BK)
        if self.voice_rows:
            voice_BQ = outputs["codes"][:, 1 : 1 + len(self.voice_rows)]
            if self.given_rows:
                voice_BQ = jnp.where(jnp.all(free, axis=1)[:, None], voice_BQ, UNGENERATED)
            tree["decoder"], outputs["pcm"] = self._decode(params["codec"], tree["decoder"], voice_BQ)
        return flatten(tree), outputs

    def step_tokens(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Take one column of codes in and give one out; the codec is not advanced.

        Returns:
          The state and what `step` returns without `pcm`, with {text_logits [B, V], logits [B, Q, V]}: those of the
          tokens sampled in this step, float32.
        """
        params, tree = nested(weights), self._reset(state, inputs["reset"])
        tree, outputs, computed = self._language_model(params["lm"], tree, inputs, inputs.get("given"))
        outputs["text_logits"], outputs["logits"] = computed.text_logits_BV, computed.logits_BQV
        return flatten(tree), outputs

    def prefill(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Execute the first `length` steps of the inputs, whose text and codes are all known; nothing is returned.

        `force_text [B, T]`, `force_codes [B, Q, T]` and `given [B, G, T]` are what the steps would be given one by one.
        Where nothing is heard the decoder takes part, so that the sound of a prompt carries over into what follows:
        `voice [B, Q, T]` are the codes of the columns that those steps would return, negative where there is no sound.
        """
        params, tree = nested(weights), self._tree(state, inputs["length"].shape[0])
        batch, length = inputs["force_text"].shape
        position_BT = tree["lm"]["offset"][:, None] + jnp.arange(length)
        codes_BQT = jax.vmap(self.policy.codes, (None, 1, 2), 2)(self.lm, position_BT, inputs["force_codes"])
        columns = [inputs["force_text"][:, None], codes_BQT] + ([inputs["given"]] if self.given_rows else [])
        columns_BKT, guidance = jnp.concatenate(columns, axis=1), self._guidance(inputs, batch)
        tree["lm"] = lm.prefill(self.lm, params["lm"], tree["lm"], columns_BKT, inputs["length"], guidance)
        if "voice" in inputs:
            here_BT = jnp.arange(length) < inputs["length"][:, None]
            voice_BQT = jnp.where(here_BT[:, None], inputs["voice"], UNGENERATED)

            def decode(decoder: Any, voice_BQ: Array) -> tuple[Any, None]:
                return self._decode(params["codec"], decoder, voice_BQ)[0], None

            tree["decoder"], _ = jax.lax.scan(decode, tree["decoder"], jnp.moveaxis(voice_BQT, 2, 0))
        return flatten(tree), {}

    def place(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Put the state of one row, the inputs `row/...`, into the slot `slot` of a batch."""
        placed = {
            name: jax.lax.dynamic_update_slice_in_dim(value, inputs[f"row/{name}"], inputs["slot"], axis=0)
            for name, value in state.items()
        }
        return placed, {}

    def condition(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Make the conditions part of the state; nothing else changes."""
        batch = next(iter(state.values())).shape[0]
        tree = self._tree(state, batch)

        def values(kind: str) -> dict[str, Any]:
            given = {c.name: inputs[f"{kind}/{c.name}"] for c in self.lm.conditioners}
            for c in self.lm.conditioners:
                if isinstance(c, lm.TensorConditioner):
                    given[c.name] = lm.Vectors(given[c.name], inputs[f"{kind}/{c.name}/mask"])
            return given

        null = None if self.guidance is None else values("null")
        params = nested(weights)["lm"]
        tree["lm"] = generation.set_conditions(self.lm, params, tree["lm"], values("condition"), null)
        return flatten(tree), {}

    def encode(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Turn PCM `[B, T * frame_size]` into codes `[B, Q, T]`; the state is an encoder's alone."""
        encoder = unflatten_like(
            jax.eval_shape(lambda: codec.init_encoder_state(self.codec, inputs["reset"].shape[0])), state
        )
        encoder, codes_BQT = codec.encode_step(
            self.codec,
            nested(weights)["codec"],
            codec.reset_state(self.codec, encoder, inputs["reset"]),
            inputs["pcm"],
            num_codebooks=max(len(self.given_rows), len(self.voice_rows)),
        )
        return flatten(encoder), {"codes": codes_BQT}

    def _init_tree(self, batch: int) -> dict[str, Any]:
        tree = {"lm": lm.init_generation(self.lm, None, batch, guided=self.guidance is not None)}
        if self.given_rows:
            tree["encoder"] = codec.init_encoder_state(self.codec, batch)
        if self.voice_rows:
            tree["decoder"] = codec.init_decoder_state(self.codec, batch)
        if policy := self.policy.init_state(batch):
            tree["policy"] = policy
        if self.takes_words:
            tree["words_taken"] = jnp.zeros((batch,), jnp.int32)
        return tree

    def _tree(self, state: Arrays, batch: int) -> dict[str, Any]:
        """Return a flat state as a tree."""
        return unflatten_like(jax.eval_shape(lambda: self._init_tree(batch)), state)

    def _reset(self, state: Arrays, rows: Array) -> dict[str, Any]:
        """Return the state as a tree in which the rows that are true start afresh."""
        tree = self._tree(state, rows.shape[0])
        for side in ("encoder", "decoder"):
            if side in tree:
                tree[side] = codec.reset_state(self.codec, tree[side], rows)
        tree["lm"] = lm.reset_generation(self.lm, tree["lm"], rows)
        if "policy" in tree:
            tree["policy"] = policies.reset(self.policy, tree["policy"], rows)
        if "words_taken" in tree:
            tree["words_taken"] = jnp.where(rows, 0, tree["words_taken"])
        return tree

    def _decode(self, params: Any, decoder: Any, voice_BQ: Array) -> tuple[Any, Array]:
        """Decode the rows whose codes are all there (a synthesis has none at first); zeros elsewhere."""
        voiced = jnp.all(voice_BQ >= 0, axis=1)
        decoder, pcm_BN = codec.decode_step(self.codec, params, decoder, jnp.maximum(voice_BQ, 0)[:, :, None], voiced)
        return decoder, jnp.where(voiced[:, None], pcm_BN, 0.0)

    def _next_word(self, taken_B: Array, inputs: Arrays) -> Arrays:
        """Return the inputs with the one word that is next, out of the words `word_number`, ... that are offered.

        Whoever sends the inputs may not know yet whether the last steps took words: the state counts them.
        """
        slot = taken_B - inputs["word_number"]
        there = (slot >= 0) & (slot < WORD_SLOTS)
        rows, slot = jnp.arange(slot.shape[0]), jnp.clip(slot, 0, WORD_SLOTS - 1)
        offered = ("word", "word_ahead", "word_padding", "word_waiting")
        picked = {name: inputs[name][rows, slot] for name in offered if name in inputs}
        picked["word_waiting"] = picked["word_waiting"] & there
        return {**inputs, **picked}

    def _guidance(self, inputs: Arrays, batch: int) -> Arrays | None:
        """Return the guidance of every row: the artifact's, with what the inputs say instead."""
        if self.guidance is None:
            return None
        own = {"coefficient": "guidance", "masked_until": "null_until"}
        changed = {field: inputs[name] for field, name in own.items() if name in inputs}
        return {**self.guidance.rows(batch), **changed}

    def _language_model(
        self, params: Any, tree: dict[str, Any], inputs: Arrays, given_BK: Array | None
    ) -> tuple[dict[str, Any], Arrays, generation.StepOutput]:
        active, force_text, policy = inputs["active"], inputs["force_text"], self.policy
        policy_state, limit = tree.get("policy", {}), self.top_k_limit
        if self.takes_words:
            inputs = self._next_word(tree["words_taken"], inputs)
        given_BK = policy.given(self.lm, inputs, given_BK)
        choice = {name: inputs[name] for name in sampling.SAMPLING_INPUTS}
        guidance = self._guidance(inputs, active.shape[0])
        state, text_half = generation.sample_text(
            self.lm, params, tree["lm"], given_BK, choice, guidance, active, top_k_limit=limit
        )
        free = active & (force_text == UNGENERATED)
        policy_state, text, said = policy.text(self.lm, policy_state, inputs, text_half.token_B, free)
        text = policies.forced(force_text, text)
        force_codes = policy.codes(self.lm, state["offset"], inputs["force_codes"])
        state, computed = generation.sample_audio(
            self.lm, params, state, text_half, text, choice, guidance, force_codes, active, top_k_limit=limit
        )
        # Never at the first executed step, not even in a layout without delays.
        max_delay = self.lm.layout.max_delay
        ready = active & (state["offset"] > max(max_delay, 1))
        columns = [computed.out_BK]
        if self.given_rows:
            given = generation.read_given(self.lm, state) if max_delay else jnp.full_like(given_BK, UNGENERATED)
            columns.append(given)
        codes = jnp.where(ready[:, None], jnp.concatenate(columns, axis=1), UNGENERATED)
        token = codes[:, 0]
        if self.lm.demux_text:
            token = jnp.where(token < 0, token, token % (self.lm.text_card + 1))
        policy_state, finished = policy.finish(self.lm, policy_state, inputs, token, active)
        outputs = {"text_token": token, "codes": codes, "ready": ready, **said, **finished}
        if self.lm.extra_heads:
            heads = jax.nn.softmax(computed.extra_logits.astype(jnp.float32), axis=-1)
            outputs["extra_heads"] = jnp.where(ready[:, None, None], heads, 0.0)
        tree = {**tree, "lm": state}
        if policy_state:
            tree["policy"] = policy_state
        if self.takes_words:
            tree["words_taken"] = tree["words_taken"] + outputs["word_taken"]
        return tree, outputs, computed

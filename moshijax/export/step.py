"""One frame of a call as pure functions: user audio in, the model's audio and text out.

`CallStep` composes the codec and the language model into the programs of an artifact. At their boundary there are only
flat dicts of arrays, named by path, so that whoever runs them needs no class of ours.

The order within a step is fixed: reset, encode, language model, decode. A row's first executed step after a reset only
primes position 0: its audio is ignored, its encoder is not advanced and nothing is returned for it; so the first frame
the encoder sees is the first that the model hears (the generator of `moshi`, `models/lm.py`, ignores the first codes it
is given). The decoder advances only on ready rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax.traverse_util import unflatten_dict

from moshijax import codec, lm
from moshijax.errors import ConfigError
from moshijax.lm import conditioning, generation, policies, sampling
from moshijax.tokens import UNGENERATED

if TYPE_CHECKING:
    from jaxtyping import Array

    Arrays = dict[str, Array]
    Specs = dict[str, jax.ShapeDtypeStruct]


def flatten(tree: Any, prefix: str = "") -> Arrays:
    """A pytree as {path: leaf}; paths join the keys of dicts, tuples and dataclasses with '/'."""
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
    """The inverse of `flatten` for a tree of the same structure."""
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in flatten(tree, prefix)])


@dataclass(frozen=True)
class CallStep:
    """The programs of an artifact for one pair of models (see `moshijax.export.artifact.Programs`).

    `top_k_limit` bounds what `top_k` and `text_top_k` may be. `policy`: what the model is used for. `guidance` compiles
    classifier-free guidance into the step; its coefficient is only a default. Weights are {'codec/...', 'lm/...'}, each
    model in its inference layout. Which inputs and outputs there are follows from the layout and the policy: without
    given rows no `pcm` or `given` comes in, without generated audio rows no `pcm` goes out.

    Raises: ConfigError if the codec does not fit the rows and codes of the language model, or the policy its layout.
    """

    codec: codec.MimiConfig
    lm: lm.LMConfig
    top_k_limit: int = 250
    policy: policies.Policy = policies.Conversation()
    guidance: lm.Guidance | None = None

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
    def prompted(self) -> bool:
        """Whether a call can begin with a voice: there is a voice, and it follows something."""
        return bool(self.voice_rows) and (bool(self.given_rows) or isinstance(self.policy, policies.Synthesis))

    @property
    def programs(self) -> tuple[str, ...]:
        """Names of the programs, which are methods of this class."""
        more = (["condition"] if self.lm.conditioners else []) + (["encode"] if self.prompted else [])
        return ("init_state", "step", "step_tokens", *more)

    def input_specs(self, program: str, batch: int) -> Specs:
        """Shapes and dtypes of the inputs of a program other than `init_state`."""
        spec = jax.ShapeDtypeStruct
        specs = {"active": spec((batch,), jnp.bool_)}
        if program == "condition":
            kinds = ("condition", "null") if self.guidance is not None else ("condition",)
            for kind in kinds:
                for conditioner in self.lm.conditioners:
                    for suffix, shape_dtype in conditioning.spec(conditioner, batch).items():
                        specs[f"{kind}/{conditioner.name}{suffix}"] = spec(*shape_dtype)
            return specs
        specs["reset"] = spec((batch,), jnp.bool_)
        pcm = spec((batch, self.codec.frame_size), jnp.float32)
        if program == "encode":
            return {**specs, "pcm": pcm}
        specs |= {
            "force_text": spec((batch,), jnp.int32),
            "force_codes": spec((batch, len(self.voice_rows)), jnp.int32),
        }
        specs |= {name: spec(*shape_dtype) for name, shape_dtype in sampling.input_specs(batch).items()}
        if self.guidance is not None:
            specs["guidance"] = spec((batch,), jnp.float32)
            specs["null_until"] = spec((batch,), jnp.int32)
        specs |= {name: spec(*shape_dtype) for name, shape_dtype in self.policy.input_specs(batch).items()}
        if self.given_rows:
            given = spec((batch, len(self.given_rows)), jnp.int32)
            specs |= {"pcm": pcm} if program == "step" else {"given": given}
        return specs

    def init_state(self, batch: int) -> Arrays:
        """The state of `batch` rows that have not begun."""
        return flatten(self._init_tree(batch))

    def step(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """PCM of one frame in, PCM of one frame out.

        Returns the state and {pcm, text_token, codes, ready}, with what the policy says (such as `ended`) and, where
        the model has them, the probabilities of the extra heads (`extra_heads [B, H, V]`).
        """
        params, tree = unflatten_dict(weights, sep="/"), self._reset(state, inputs["reset"])
        given_BK = None
        if self.given_rows:
            hearing = inputs["active"] & (tree["lm"]["offset"] > 0)
            if "end_of_input" in inputs:
                hearing = hearing & ~inputs["end_of_input"]
            tree["encoder"], codes_BQT = codec.encode_step(
                self.codec, params["codec"], tree["encoder"], inputs["pcm"], hearing, num_codebooks=len(self.given_rows)
            )
            given_BK = codes_BQT[:, :, 0]
        tree, outputs, _ = self._language_model(params["lm"], tree, inputs, given_BK)
        if self.voice_rows:
            codes_BQ1 = outputs["codes"][:, 1 : 1 + len(self.voice_rows), None]
            voiced = outputs["ready"]
            if isinstance(self.policy, policies.Synthesis):  # there is nothing to hear before its audio begins
                voiced = voiced & jnp.all(codes_BQ1 >= 0, axis=(1, 2))
            voice_BQ1 = jnp.maximum(codes_BQ1, 0)
            tree["decoder"], pcm_BN = codec.decode_step(self.codec, params["codec"], tree["decoder"], voice_BQ1, voiced)
            outputs["pcm"] = jnp.where(voiced[:, None], pcm_BN, 0.0)
        return flatten(tree), outputs

    def step_tokens(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """One column of codes in, one out; the codec is not advanced.

        Returns the state and what `step` returns without `pcm`, with {text_logits [B, V], logits [B, Q, V]}: those of
        the tokens sampled in this step, float32.
        """
        params, tree = unflatten_dict(weights, sep="/"), self._reset(state, inputs["reset"])
        tree, outputs, computed = self._language_model(params["lm"], tree, inputs, inputs.get("given"))
        outputs["text_logits"], outputs["logits"] = computed.text_logits_BV, computed.logits_BQV
        return flatten(tree), outputs

    def condition(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Make the conditions of the active rows part of their state; nothing else changes."""
        tree = self._tree(state, inputs["active"].shape[0])

        def values(kind: str) -> dict[str, Any]:
            found = {c.name: inputs[f"{kind}/{c.name}"] for c in self.lm.conditioners}
            for c in self.lm.conditioners:
                if isinstance(c, lm.TensorConditioner):
                    found[c.name] = lm.Vectors(found[c.name], inputs[f"{kind}/{c.name}/mask"])
            return found

        null = None if self.guidance is None else values("null")
        params = unflatten_dict(weights, sep="/")["lm"]
        tree["lm"] = generation.set_conditions(self.lm, params, tree["lm"], values("condition"), null, inputs["active"])
        return flatten(tree), {}

    def encode(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """PCM of one frame to its codes `[B, Q]`, with the encoders of the active rows; the rest stands still."""
        tree = self._tree(state, inputs["active"].shape[0])
        encoder = codec.reset_state(self.codec, tree["encoder"], inputs["reset"])
        tree["encoder"], codes_BQT = codec.encode_step(
            self.codec,
            unflatten_dict(weights, sep="/")["codec"],
            encoder,
            inputs["pcm"],
            inputs["active"],
            num_codebooks=max(len(self.given_rows), len(self.voice_rows)),
        )
        return flatten(tree), {"codes": codes_BQT[:, :, 0]}

    def _init_tree(self, batch: int) -> dict[str, Any]:
        tree = {"lm": lm.init_generation(self.lm, None, batch, guided=self.guidance is not None)}
        if self.given_rows or self.prompted:
            tree["encoder"] = codec.init_encoder_state(self.codec, batch)
        if self.voice_rows:
            tree["decoder"] = codec.init_decoder_state(self.codec, batch)
        if policy := self.policy.init_state(batch):
            tree["policy"] = policy
        return tree

    def _tree(self, state: Arrays, batch: int) -> dict[str, Any]:
        """A flat state as a tree."""
        return unflatten_like(jax.eval_shape(lambda: self._init_tree(batch)), state)

    def _reset(self, state: Arrays, rows: Array) -> dict[str, Any]:
        """The state as a tree, the rows that are true afresh."""
        tree = self._tree(state, rows.shape[0])
        for side in ("encoder", "decoder"):
            if side in tree:
                tree[side] = codec.reset_state(self.codec, tree[side], rows)
        tree["lm"] = lm.reset_generation(self.lm, tree["lm"], rows)
        if "policy" in tree:
            tree["policy"] = policies.reset(self.policy, tree["policy"], rows)
        return tree

    def _guidance(self, inputs: Arrays) -> Arrays | None:
        """The guidance of every row: the artifact's, with what the inputs say of it."""
        if self.guidance is None:
            return None
        rows = self.guidance.rows(inputs["active"].shape[0])
        return {**rows, "coefficient": inputs["guidance"], "masked_until": inputs["null_until"]}

    def _language_model(
        self, params: Any, tree: dict[str, Any], inputs: Arrays, given_BK: Array | None
    ) -> tuple[dict[str, Any], Arrays, generation.StepOutput]:
        active, force_text, policy = inputs["active"], inputs["force_text"], self.policy
        policy_state, limit = tree.get("policy", {}), self.top_k_limit
        given_BK = policy.given(self.lm, inputs, given_BK)
        choice = {name: inputs[name] for name in sampling.SAMPLING_INPUTS}
        guidance = self._guidance(inputs)
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
            outputs["extra_heads"] = jax.nn.softmax(computed.extra_logits.astype(jnp.float32), axis=-1)
        tree = {**tree, "lm": state}
        return {**tree, "policy": policy_state} if policy_state else tree, outputs, computed

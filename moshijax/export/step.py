"""One frame of a call as pure functions: user audio in, the model's audio and text out.

`CallStep` composes the codec and the language model into the three programs of an artifact. At their boundary there are
only flat dicts of arrays, named by path, so that whoever runs them needs no class of ours.

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
from moshijax.lm import generation
from moshijax.lm.tokens import UNGENERATED

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


# The part of a generation state that the artifact takes as inputs of every step instead.
SAMPLING_INPUTS = ("seed", "temperature", "text_temperature", "top_k", "text_top_k", "pad_bonus")


@dataclass(frozen=True)
class CallStep:
    """The programs of an artifact for one pair of models (see `moshijax.export.artifact.Programs`).

    `top_k_limit` bounds what `top_k` and `text_top_k` may be. Weights are {'codec/...', 'lm/...'}, each model in its
    inference layout. Which inputs and outputs there are follows from the layout: without given rows no `pcm` or `given`
    comes in, without generated audio rows no `pcm` goes out.

    Raises: ConfigError if the codec does not fit the rows and codes of the language model.
    """

    codec: codec.MimiConfig
    lm: lm.LMConfig
    top_k_limit: int = 250

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

    @property
    def given_rows(self) -> tuple[int, ...]:
        """Rows of the grid that come from the user's audio."""
        return self.lm.layout.given_rows

    @property
    def voice_rows(self) -> tuple[int, ...]:
        """Rows of the grid that become the model's voice."""
        return self.lm.layout.model_rows[1:]

    def input_specs(self, program: str, batch: int) -> Specs:
        """Shapes and dtypes of the inputs of `step` or `step_tokens`."""
        spec = jax.ShapeDtypeStruct
        specs = {
            "active": spec((batch,), jnp.bool_),
            "reset": spec((batch,), jnp.bool_),
            "force_text": spec((batch,), jnp.int32),
            "force_codes": spec((batch, len(self.voice_rows)), jnp.int32),
            "seed": spec((batch, 2), jnp.uint32),
            "temperature": spec((batch,), jnp.float32),
            "text_temperature": spec((batch,), jnp.float32),
            "top_k": spec((batch,), jnp.int32),
            "text_top_k": spec((batch,), jnp.int32),
            "pad_bonus": spec((batch,), jnp.float32),
        }
        if self.given_rows and program == "step":
            specs["pcm"] = spec((batch, self.codec.frame_size), jnp.float32)
        if self.given_rows and program == "step_tokens":
            specs["given"] = spec((batch, len(self.given_rows)), jnp.int32)
        return specs

    def init_state(self, batch: int) -> Arrays:
        """The state of `batch` rows that have not begun."""
        return flatten(self._init_tree(batch))

    def step(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """PCM of one frame in, PCM of one frame out. Returns the state and {pcm, text_token, codes, ready}."""
        params, tree = unflatten_dict(weights, sep="/"), self._reset(state, inputs["reset"])
        given_BK = None
        if self.given_rows:
            hearing = inputs["active"] & (tree["lm"]["offset"] > 0)
            tree["encoder"], codes_BQT = codec.encode_step(
                self.codec, params["codec"], tree["encoder"], inputs["pcm"], hearing, num_codebooks=len(self.given_rows)
            )
            given_BK = codes_BQT[:, :, 0]
        tree["lm"], outputs, _ = self._language_model(params["lm"], tree["lm"], inputs, given_BK)
        if self.voice_rows:
            voice_BQ1 = jnp.maximum(outputs["codes"][:, 1 : 1 + len(self.voice_rows), None], 0)
            ready = outputs["ready"]
            tree["decoder"], pcm_BN = codec.decode_step(self.codec, params["codec"], tree["decoder"], voice_BQ1, ready)
            outputs["pcm"] = jnp.where(ready[:, None], pcm_BN, 0.0)
        return flatten(tree), outputs

    def step_tokens(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """One column of codes in, one out; the codec is not advanced.

        Returns the state and {text_token, codes, ready, text_logits [B, V], logits [B, Q, V]}; the logits are those of
        the tokens sampled in this step, float32.
        """
        params, tree = unflatten_dict(weights, sep="/"), self._reset(state, inputs["reset"])
        tree["lm"], outputs, computed = self._language_model(params["lm"], tree["lm"], inputs, inputs.get("given"))
        outputs["text_logits"], outputs["logits"] = computed.text_logits_BV, computed.logits_BQV
        return flatten(tree), outputs

    def _init_tree(self, batch: int) -> dict[str, Any]:
        tree = {"lm": lm.init_generation(self.lm, None, batch)}
        del tree["lm"]["sampling"]
        if self.given_rows:
            tree["encoder"] = codec.init_encoder_state(self.codec, batch)
        if self.voice_rows:
            tree["decoder"] = codec.init_decoder_state(self.codec, batch)
        return tree

    def _reset(self, state: Arrays, rows: Array) -> dict[str, Any]:
        """The state as a tree, the rows that are true afresh."""
        tree = unflatten_like(jax.eval_shape(lambda: self._init_tree(rows.shape[0])), state)
        for side in ("encoder", "decoder"):
            if side in tree:
                tree[side] = codec.reset_state(self.codec, tree[side], rows)
        tree["lm"] = lm.reset_generation(self.lm, tree["lm"], rows)
        return tree

    def _language_model(
        self, params: Any, state: dict[str, Any], inputs: Arrays, given_BK: Array | None
    ) -> tuple[dict[str, Any], Arrays, generation.StepOutput]:
        active = inputs["active"]
        force_BK = jnp.concatenate([inputs["force_text"][:, None], inputs["force_codes"]], axis=1)
        sampling = {name: inputs[name] for name in SAMPLING_INPUTS}
        state, computed = generation.step(
            self.lm,
            params,
            {**state, "sampling": sampling},
            given_BK,
            force_BK,
            active,
            top_k_limit=self.top_k_limit,
        )
        del state["sampling"]
        # Never at the first executed step, not even in a layout without delays.
        max_delay = self.lm.layout.max_delay
        ready = active & (state["offset"] > max(max_delay, 1))
        columns = [computed.out_BK]
        if self.given_rows:
            given = generation.read_given(self.lm, state) if max_delay else jnp.full_like(given_BK, UNGENERATED)
            columns.append(given)
        codes = jnp.where(ready[:, None], jnp.concatenate(columns, axis=1), UNGENERATED)
        return state, {"text_token": codes[:, 0], "codes": codes, "ready": ready}, computed

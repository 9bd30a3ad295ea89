"""The steps of a spoken answer as the programs of an artifact.

They are those of `moshijax.omni.answer` for one caller, who has a state of his own, with the choice of tokens inside,
and the two of the vocoder, which have no state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from moshijax.export.step import Signature, flatten, nested, unflatten_like
from moshijax.lm import sampling
from moshijax.omni import answer, vocoder
from moshijax.omni.config import OmniConfig
from moshijax.omni.vocoder import VocoderConfig
from moshijax.runtime.unit_voice import LENGTHS, UNITS

if TYPE_CHECKING:
    from jaxtyping import Array

    Arrays = dict[str, Array]
    Specs = dict[str, jax.ShapeDtypeStruct]

#: Lengths of `prefill`, in ids: what stands behind the question alone, and whole prompts.
PREFILL_LENGTHS = (16, 64, 256)
#: The published model chooses the most likely token.
SAMPLING = {"text_temperature": 0.0, "text_top_k": 0}


@dataclass(frozen=True)
class AnswerStep:
    """The programs of an artifact (see `moshijax.export.artifact.PureFunctions`); weights are `{"omni/", "vocoder/"}`.

    Args:
      omni: the model; its caches hold one answer.
      vocoder: makes its units audible.
      top_k_limit: the largest `text_top_k` that may be asked for.
      prefill_lengths: lengths of the `prefill` programs.
    """

    omni: OmniConfig
    vocoder: VocoderConfig
    top_k_limit: int = 250
    prefill_lengths: tuple[int, ...] = PREFILL_LENGTHS

    def programs(self, batches: Sequence[int]) -> tuple[Signature, ...]:
        """Return every program to export, each for one row."""
        single = [Signature(name, 1) for name in ("init_state", "encode_speech", "decode_token", "decode_units")]
        single += [Signature("prefill", 1, length) for length in self.prefill_lengths]
        return (*single, Signature("durations", 1, UNITS), *(Signature("vocode_chunk", 1, n) for n in LENGTHS))

    def input_specs(self, program: Signature) -> Specs:
        """Return shapes and dtypes of the inputs of a program other than `init_state`."""
        spec, batch = jax.ShapeDtypeStruct, program.batch
        chosen = {
            name: spec(*shape_dtype)
            for name, shape_dtype in sampling.input_specs(batch).items()
            if name in ("seed", *SAMPLING)
        }
        match program.name:
            case "encode_speech":
                return {"pcm": spec((batch, answer.clip_samples(self.omni)), jnp.float32)}
            case "prefill":
                ids, length = spec((batch, program.length), jnp.int32), spec((batch,), jnp.int32)
                return {"ids": ids, "length": length, **chosen}
            case "decode_token":
                return chosen
            case "durations" | "vocode_chunk":
                reaches = {"durations": self.vocoder.receptive_units, "vocode_chunk": self.vocoder.receptive_frames}
                return {"units": spec((batch, program.length + 2 * reaches[program.name]), jnp.int32)}
        return {}

    def init_state(self, batch: int) -> Arrays:
        """Return the state of rows that have heard nothing."""
        return flatten(self._init_tree(batch))

    def state_specs(self, program: Signature) -> Specs:
        """Return shapes and dtypes of the state of a program; the vocoder has none."""
        if program.name in ("durations", "vocode_chunk"):
            return {}
        return jax.eval_shape(lambda: self.init_state(program.batch))

    def encode_speech(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Begin an answer and hear the whole question, `pcm [B, clip]`, zero behind its end."""
        tree = self._tree(state)
        tree["answer"] = answer.encode_speech(self.omni, nested(weights)["omni"], tree["answer"], inputs["pcm"])
        return flatten(tree), {}

    def prefill(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Read the first `length` ids of a piece of the prompt; return the `token` that follows it."""
        tree = self._tree(state)
        tree["answer"], logits = answer.prefill(
            self.omni, nested(weights)["omni"], tree["answer"], inputs["ids"], inputs["length"]
        )
        tree["chosen"] = jnp.zeros_like(tree["chosen"])
        return self._choose(tree, logits, inputs)

    def decode_token(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Read the token that was chosen last; return the next one."""
        tree = self._tree(state)
        tree["answer"], logits = answer.decode_token(self.omni, nested(weights)["omni"], tree["answer"], tree["token"])
        return self._choose(tree, logits, inputs)

    def decode_units(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Return the `units [B, L]` of the token that was chosen last, merged, -1 in between."""
        tree = self._tree(state)
        tree["answer"], units = answer.decode_units(self.omni, nested(weights)["omni"], tree["answer"])
        return flatten(tree), {"units": units}

    def durations(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Return how many `frames` each unit of a window lasts; those near its ends are not certain."""
        return {}, {"frames": vocoder.durations(self.vocoder, nested(weights)["vocoder"], inputs["units"])}

    def vocode_chunk(self, weights: Arrays, state: Arrays, inputs: Arrays) -> tuple[Arrays, Arrays]:
        """Return the `pcm` of the middle of a window of frames."""
        return {}, {"pcm": vocoder.vocode_chunk(self.vocoder, nested(weights)["vocoder"], inputs["units"])}

    def _choose(self, tree: dict[str, Any], logits: Array, inputs: Arrays) -> tuple[Arrays, Arrays]:
        token = sampling.sample(
            logits,
            *(inputs[name] for name in ("text_temperature", "text_top_k", "seed")),
            tree["chosen"],
            0,
            self.top_k_limit,
        )
        tree |= {"token": token, "chosen": tree["chosen"] + 1}
        return flatten(tree), {"token": token}

    def _init_tree(self, batch: int) -> dict[str, Any]:
        count = jnp.zeros((batch,), jnp.int32)
        return {"answer": answer.init_state(self.omni, batch), "token": count, "chosen": count}

    def _tree(self, state: Arrays) -> dict[str, Any]:
        return unflatten_like(jax.eval_shape(lambda: self._init_tree(state["token"].shape[0])), state)

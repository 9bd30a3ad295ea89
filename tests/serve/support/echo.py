"""Artifacts that are built in seconds; one answers with what it hears, and with a word where that begins to be loud."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import pytest

from moshijax import runtime
from moshijax.export import artifact
from moshijax.export.step import CallStep
from moshijax.testing import tiny
from moshijax.tokens import PAD, UNGENERATED

#: What it says, one word after the other.
WORDS = "The red house stands north of the river, and the old mill is behind it. Shall I tell you more?".split()
FIRST = 4  # token of the first word
LOUD = 0.02  # mean magnitude of a frame
PAUSE = 2  # frames that are not loud, after which a word begins

#: Frames of 80 ms at 24 kHz, as callers send them.
CODEC = dataclasses.replace(
    tiny.CODEC,
    sample_rate=24_000,
    seanet=dataclasses.replace(tiny.CODEC.seanet, ratios=(8, 6, 5, 4)),
)


@dataclass(frozen=True)
class FewPrograms(CallStep):
    """A step without all that only prompts and evaluations need, which takes most of the time to compile."""

    def programs(self, batches):
        kept = ("init_state", "step", "place")
        return tuple(program for program in super().programs(batches) if program.name in kept)


class EchoStep(FewPrograms):
    """The step of a conversation with all its inputs and outputs, but no model in it."""

    def init_state(self, batch):
        zeros = jnp.zeros(batch, jnp.int32)
        return {"steps": zeros, "words": zeros, "quiet": zeros + PAUSE}

    def step(self, weights, state, inputs):
        fresh = self.init_state(len(inputs["active"]))
        old = {name: jnp.where(inputs["reset"], fresh[name], state[name]) for name in state}
        ready = inputs["active"] & (old["steps"] >= self.lm.layout.max_delay)
        loud = jnp.mean(jnp.abs(inputs["pcm"]), axis=1) > LOUD
        speaks = loud & (old["quiet"] >= PAUSE) & ready
        new = {
            "steps": old["steps"] + 1,
            "words": old["words"] + speaks,
            "quiet": jnp.where(loud, 0, old["quiet"] + 1),
        }
        text = jnp.where(speaks, FIRST + old["words"] % len(WORDS), PAD)
        outputs = {
            "ready": ready,
            "text_token": jnp.where(ready, text, UNGENERATED),
            "codes": jnp.full((len(ready), self.lm.layout.num_streams), UNGENERATED),
            "pcm": jnp.where(ready[:, None], inputs["pcm"], 0.0),
        }
        return {name: jnp.where(inputs["active"], new[name], state[name]) for name in state}, outputs


def build(*arguments: Any, step: type[CallStep] = FewPrograms, **options: Any) -> runtime.Artifact:
    """Write an artifact as `artifact.build` does, but with a step of another class, and load it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artifact, "CallStep", step)
        return runtime.load(artifact.build(*arguments, **options))


def build_echo(out_dir: Path, batch: int) -> runtime.Artifact:
    """Write the artifact that answers with what it hears."""
    codec_model, lm_model, pieces = tiny.tiny_models(codec_config=CODEC)
    spoken = list(pieces)
    spoken[FIRST : FIRST + len(WORDS)] = ["▁" + word for word in WORDS]
    return build(codec_model, lm_model, spoken, out_dir, batches=(batch,), step=EchoStep)

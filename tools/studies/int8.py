"""Measure what int8 weights and an int8 cache change, against float32 and beside bfloat16.

    python -m tools.studies.int8 [--models reference trained] [--write docs/serving.md]

Every step of a model runs on the same history in all types, and its logits are compared with those of float32. Some
minutes on two cores. The models: those of the PyTorch reference in tests/parity, with weights by name (random), and one
trained for a minute on the artificial language of `tools/studies/learning.py`.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from moshijax import lm
from moshijax.export import weights
from moshijax.export.step import nested
from moshijax.lm import LMConfig, generation

KINDS = ("reference", "trained")
#: Models of tests/parity that stream: Moshi, shared depth weights, split rotations, cross-attention, recognition.
REFERENCE = ("lm_moshi", "lm_schedule", "lm_rope_depth", "lm_cross", "lm_recognition")


class Types(NamedTuple):
    """Of an artifact, and the platform that it runs on."""

    platform: str
    weights: str
    cache: str = "computed"


EXACT = Types("cpu", "float32")
COMPARED = {
    "bfloat16": Types("cuda", "bfloat16"),
    "int8 weights": Types("cuda", "int8"),
    "int8 weights and cache": Types("cuda", "int8", "int8"),
    "int8 weights and cache, computed in float32": Types("cpu", "int8", "int8"),
}


class Difference(NamedTuple):
    """Of the logits of one or more rows from those in float32.

    Attributes:
      error: Root mean square of the difference over the spread of the logits.
      agreement: Share of steps with the same most likely token.
      nats: Mean divergence of the distributions at temperature 1 (Kullback-Leibler).
    """

    error: float
    agreement: float
    nats: float


def converted(config: LMConfig, params: Any, types: Types) -> tuple[LMConfig, Any]:
    """Return a model as the programs of an artifact take it."""
    stored = weights.stored("lm", lm.abstract, config, params, types.weights)
    taken = {name: x.astype(weights.program_dtype(types.platform, str(x.dtype))) for name, x in stored.items()}
    dtype = weights.compute_dtype(types.platform, types.weights)
    config = config.with_dtype(dtype, dtype)
    temporal = dataclasses.replace(config.temporal, cache_dtype=types.cache)
    return dataclasses.replace(config, temporal=temporal), jax.tree.map(jnp.asarray, nested(taken)["lm"])


def logits(config: LMConfig, params: Any, grids_BKT: np.ndarray) -> dict[str, np.ndarray]:
    """Step through grids whose every token is dictated; return float32 logits `text [T, B, V]`, `audio [T, B, Q, V]`.

    Frames that only prime the model are left out.
    """
    batch, _, frames = grids_BKT.shape
    rows, layout = len(config.layout.model_rows), config.layout
    own = lm.delays.delay(jnp.asarray(grids_BKT[:, :rows]), layout.delays[:rows], (0,) * rows)[:, :, :frames]
    sampling = lm.Sampling.greedy().rows(batch)

    @jax.jit
    def run(params: Any, own: Any, given: Any) -> Any:
        def step(state: Any, column: Any) -> Any:
            force, given = column
            state, out = generation.step(config, params, state, given, sampling, None, force)
            return state, (out.text_logits_BV, out.logits_BQV)

        state = lm.init_generation(config, params, batch)
        return jax.lax.scan(step, state, (jnp.moveaxis(own, 2, 0), jnp.moveaxis(given, 2, 0)))[1]

    text, audio = run(params, own, jnp.asarray(grids_BKT[:, rows:]))
    first = layout.max_delay
    return {"text": np.asarray(text, np.float32)[first:], "audio": np.asarray(audio, np.float32)[first:]}


def difference(found: np.ndarray, exact: np.ndarray) -> Difference:
    """Compare logits `[..., V]`."""
    spread = np.sqrt(np.mean((exact - exact.mean(-1, keepdims=True)) ** 2))
    error = np.sqrt(np.mean((found - exact) ** 2)) / spread
    log_p, log_q = (np.asarray(jax.nn.log_softmax(jnp.asarray(x), axis=-1)) for x in (exact, found))
    nats = np.mean(np.sum(np.exp(log_p) * (log_p - log_q), axis=-1))
    return Difference(float(error), float(np.mean(found.argmax(-1) == exact.argmax(-1))), float(nats))


def compare(
    config: LMConfig, params: Any, grids_BKT: np.ndarray, compared: Mapping[str, Types] = COMPARED
) -> dict[str, dict[str, Difference]]:
    """Return, for every combination of types, how far the text and the audio logits are from those in float32."""
    exact = logits(*converted(config, params, EXACT), grids_BKT)
    found = {}
    for name, types in compared.items():
        here = logits(*converted(config, params, types), grids_BKT)
        found[name] = {row: difference(here[row], exact[row]) for row in exact if exact[row].size}
    return found


def random_grids(config: LMConfig, batch: int, frames: int) -> np.ndarray:
    """Return grids of any tokens."""
    random = np.random.RandomState(0)
    grids = random.randint(0, config.card, (batch, config.layout.num_streams, frames))
    grids[:, 0] = random.randint(0, config.text_card, (batch, frames))
    return grids.astype(np.int32)


@functools.cache
def reference(name: str) -> tuple[LMConfig, Any]:
    """Return a model of tests/parity."""
    from moshijax.weights import load_lm
    from tests.parity.weights_by_name import load_fixture, write_checkpoint

    with tempfile.TemporaryDirectory() as scratch:
        return load_lm(write_checkpoint(Path(scratch) / name, load_fixture(name)[0]))


def models(kinds: list[str]) -> Iterator[tuple[str, LMConfig, Any, np.ndarray]]:
    """Yield (name, config, parameters, grids) of every model."""
    if "reference" in kinds:
        for name in REFERENCE:
            config, params = reference(name)
            yield f"{name} (reference)", config, params, random_grids(config, 8, 4 * config.temporal.context)
    if "trained" in kinds:
        from tools.studies import learning

        world = learning.World()
        config = learning.model_of(lm.layouts.single_stream(learning.CODEBOOKS, 2))
        model = learning.train(config, world.spoken, 400, 0, learning.PAPER)
        yield "trained", config, model.params, world.spoken(np.random.default_rng(10**6), rows=64)


def table(results: Mapping[str, Mapping[str, Mapping[str, Difference]]]) -> str:
    """Return the page's table."""
    rows = ["| model | types | error of the logits | same most likely token | divergence, nats |", "|" + "---|" * 5]
    for model, found in results.items():
        for types, parts in found.items():
            error, agreement, nats = (
                " / ".join(form % value for value in values)
                for form, values in zip(
                    ("%.4f", "%.3f", "%.5f"), zip(*(parts[row] for row in parts), strict=True), strict=True
                )
            )
            rows.append(f"| {model} | {types} | {error} | {agreement} | {nats} |")
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--write", type=Path, help="the page that has the table")
    options = parser.parse_args()

    from tools.pages import fill

    results = {}
    for name, config, params, grids in models(options.models):
        results[name] = compare(config, params, grids)
        print(table({name: results[name]}), flush=True)
        if options.write is not None:
            page = options.write.read_text(encoding="utf-8")
            options.write.write_text(fill(page, {"int8": table(results)}), encoding="utf-8")


if __name__ == "__main__":
    main()

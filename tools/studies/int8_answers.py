"""Measure what int8 weights change in the answers of a LLaMA-Omni, against float32 and beside bfloat16.

    python -m tools.studies.int8_answers [--write docs/omni.md]

The model answers a question of noise token by token in all types, each on the same history, and the logits of text and
units are compared with those of float32. Its weights are random, so that many classes are nearly as likely as the most
likely one. Some seconds on two cores.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.export import weights
from moshijax.export.step import nested
from moshijax.omni import answer, config, speech_decoder
from moshijax.omni.adapter import AdapterConfig
from moshijax.omni.config import OmniConfig, llama_stack
from moshijax.omni.prompt import SPEECH
from moshijax.omni.speech_decoder import SpeechDecoderConfig
from moshijax.omni.text_model import TextConfig
from moshijax.omni.whisper import WhisperConfig, whisper_stack
from tools.studies import int8
from tools.studies.int8 import Difference, Types

TOKENS = 64
#: A question of five seconds, 50 embeddings; the shape of the published model.
MODEL = OmniConfig(
    WhisperConfig(128, 250, whisper_stack(128, 2, 2)),
    AdapterConfig(128, 256, 512),
    TextConfig(1000, llama_stack(256, 4, 8, 2, 768, context=50 + TOKENS)),
    SpeechDecoderConfig(256, 100, llama_stack(256, 2, 8, 8, 640, context=25 * TOKENS)),
)
COMPARED = {
    "bfloat16": Types("cuda", "bfloat16"),
    "int8 weights": Types("cuda", "int8"),
    "int8 weights, computed in float32": Types("cpu", "int8"),
}


def converted(model: OmniConfig, params: Any, types: Types) -> tuple[OmniConfig, Any]:
    """Return a model as the programs of an artifact take it."""
    stored = weights.stored("omni", config.abstract, model, params, types.weights)
    taken = {name: x.astype(weights.program_dtype(types.platform, str(x.dtype))) for name, x in stored.items()}
    dtype = weights.compute_dtype(types.platform, types.weights)
    return model.with_dtype(dtype, dtype), jax.tree.map(jnp.asarray, nested(taken)["omni"])


def logits(model: OmniConfig, params: Any, tokens: int) -> dict[str, np.ndarray]:
    """Answer with dictated tokens; return float32 logits `text [T, V]` and `units [T, L, U + 1]`."""
    random = np.random.RandomState(0)
    pcm = random.uniform(-0.5, 0.5, (1, answer.clip_samples(model))).astype(np.float32)
    said = random.randint(0, model.text.vocab, tokens).astype(np.int32)
    prompt = np.full((1, answer.speech_rows(model)), SPEECH, np.int32)

    @jax.jit
    def run(params: Any) -> Any:
        def step(state: Any, token: Any) -> Any:
            decoder, units = speech_decoder.step(
                model.decoder, params["decoder"], state["decoder"], state["hidden"][:, None]
            )
            state, text = answer.decode_token(model, params, {**state, "decoder": decoder}, token[None])
            return state, (text[0], units[0])

        state = answer.encode_speech(model, params, answer.init_state(model, 1), pcm)
        state, _ = answer.prefill(model, params, state, prompt, np.array([prompt.shape[1]]))
        return jax.lax.scan(step, state, said)[1]

    text, units = run(params)
    return {"text": np.asarray(text, np.float32), "units": np.asarray(units, np.float32)}


def compare(
    model: OmniConfig, params: Any, tokens: int, compared: Mapping[str, Types] = COMPARED
) -> dict[str, dict[str, Difference]]:
    """Return, for every combination of types, how far the logits of text and units are from those in float32."""
    exact = logits(*converted(model, params, int8.EXACT), tokens)
    found = {}
    for name, types in compared.items():
        here = logits(*converted(model, params, types), tokens)
        found[name] = {row: int8.difference(here[row], exact[row]) for row in exact}
    return found


def sizes(model: OmniConfig) -> dict[str, int]:
    """Return the bytes of a stored model by `weights_dtype`, without the header of the file; nothing is allocated."""
    return {
        dtype: sum(spec.size * spec.dtype.itemsize for spec in specs.values())
        for dtype in weights.WEIGHT_DTYPES
        for specs in [weights.specs("omni", config.abstract, model, dtype)]
    }


def size_table() -> str:
    """Return the page's table of sizes of the published model."""
    rows = ["| LLaMA-Omni 8B | size of its weights |", "|---|---|"]
    rows += [f"| {dtype} | {size / 1e9:.2f} GB |" for dtype, size in sizes(config.LLAMA_OMNI_8B).items()]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", type=Path, help="the page that has the tables")
    options = parser.parse_args()

    from tools.pages import fill

    params = config.init(MODEL, jax.random.key(0), stacked=False)
    tables = {"int8": int8.table({"random": compare(MODEL, params, TOKENS)}), "sizes": size_table()}
    print("\n\n".join(tables.values()))
    if options.write is not None:
        options.write.write_text(fill(options.write.read_text(encoding="utf-8"), tables), encoding="utf-8")


if __name__ == "__main__":
    main()

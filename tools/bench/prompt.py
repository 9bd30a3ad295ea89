"""Time what precedes a prompted call: encoding the voice, and the prompt's columns through `step_tokens`.

python -m tools.bench.prompt [--threads N]

The full-size codec and the 250 M parameter model of `tools/bench/lm.py`, weights drawn at random, as one artifact.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

from tools.bench import support

VOICE_SECONDS, PIECES, ROUNDS, FRAMES = 4.0, 50, 3, 21


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--note", default="", help="a sentence about the machine, such as other work on it")
    options = parser.parse_args()
    threads, note = options.threads, options.note
    support.limit_threads(threads)
    import jax
    import numpy as np

    from moshijax import codec, lm, runtime
    from moshijax.export import artifact
    from moshijax.runtime import prompt
    from moshijax.weights.formats.lm_config import lm_config
    from tools.bench.lm import STEP

    config = lm_config(STEP)
    models = (
        (codec.configs.MIMI, codec.init(codec.configs.MIMI, jax.random.key(0))),
        (config, lm.init(config, jax.random.key(1), stacked=False)),
    )
    parameters = lm.count_parameters(config)
    with tempfile.TemporaryDirectory() as scratch:
        built = artifact.build(*models, ["piece"] * config.text_card, Path(scratch) / "artifact")
        del models
        loaded = runtime.load(built)
        loaded.tokenize = lambda text: list(range(4, 4 + PIECES))
        rows = runtime.Rows(loaded, 1)
        voice = np.random.RandomState(0).standard_normal(int(VOICE_SECONDS * loaded.sample_rate)) * 0.05
        pcm = np.zeros((1, loaded.frame_size), np.float32)

        def timed(columns: np.ndarray | None, frames: int) -> float:
            """Return the seconds for opening a call, its prompt and its first frames."""
            started = time.perf_counter()
            row = rows.open(runtime.CallOptions(prompt=columns))
            while rows.advance_prompts():
                pass
            for _ in range(frames):
                rows.step(pcm)
            seconds = time.perf_counter() - started
            rows.close(row)
            return seconds

        def columns_of() -> np.ndarray:
            return prompt.run(prompt.make(loaded, voice.astype(np.float32), "text").columns(loaded))

        columns = columns_of()  # silence and tone are kept
        encoding, prefill, plain, call = [], [], [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            columns_of()
            encoding.append(time.perf_counter() - started)
            plain.append(timed(None, 1))
            prefill.append(timed(columns, 1))
            call.append(timed(None, FRAMES))
    length, frame = columns.shape[1], loaded.frame_seconds
    frames = (min(call) - min(plain)) / (FRAMES - 1)
    through = (min(prefill) - min(plain)) / length
    voiced = min(encoding) / length
    about = [
        f"{support.processor()}, {threads} threads, jax {jax.__version__}; the fastest of {ROUNDS}. {note}",
        f"{parameters / 1e6:.0f} M parameters, float32, batch 1: {length} columns, {VOICE_SECONDS:.0f} s of voice, "
        f"{PIECES} pieces of text and the gaps; making the prompt encodes the voice.",
    ]
    table = [["", "per column", "times real time", "of a frame of the call"]]
    for name, seconds in (
        ("a frame of the call, codec and all", frames),
        ("the prompt through `prefill`", through),
        ("the prompt, made and processed", through + voiced),
    ):
        table.append([name, f"{1e3 * seconds:.1f} ms", f"{frame / seconds:.2f}", f"{seconds / frames:.2f}"])
    support.write_section("A prompted call: before it begins", "python -m tools.bench.prompt", about, table)


if __name__ == "__main__":
    main()

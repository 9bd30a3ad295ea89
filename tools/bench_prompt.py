"""Times what comes before a prompted call: encoding the voice, and the prompt's columns through `step_tokens`.

python tools/bench_prompt.py [--threads N]

The full-size codec and the 250 M parameter model of `tools/bench_lm.py`, weights drawn at random, as one artifact.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent), str(Path(__file__).resolve().parent)]

import bench_support  # noqa: E402

VOICE_SECONDS, PIECES, ROUNDS = 4.0, 50, 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    threads = parser.parse_args().threads
    bench_support.limit_threads(threads)
    import jax
    import numpy as np
    from bench_lm import STEP

    from moshijax import codec, lm
    from moshijax.export import artifact, prompt, runtime
    from moshijax.weights.lm_config import lm_config

    config = lm_config(STEP)
    models = (
        (codec.configs.MIMI, codec.init(codec.configs.MIMI, jax.random.key(0))),
        (config, lm.init(config, jax.random.key(1), stacked=False)),
    )
    parameters = lm.count_parameters(config)
    with tempfile.TemporaryDirectory() as scratch:
        built = artifact.build(*models, ["piece"] * config.text_card, Path(scratch) / "artifact")
        del models
        program = runtime.load(built, 1)
        program.tokenize = lambda text: list(range(4, 4 + PIECES))
        voice = np.random.RandomState(0).standard_normal(int(VOICE_SECONDS * program.sample_rate)) * 0.05
        pcm = np.zeros((1, program.frame_size), np.float32)

        def first_frame(columns: np.ndarray | None) -> float:
            started = time.perf_counter()
            row = program.open(seed=0, prompt=columns)
            program.step(pcm)
            seconds = time.perf_counter() - started
            program.close(row)
            return seconds

        columns, _ = prompt.build(program, voice.astype(np.float32), "text")
        first_frame(columns[:, :4]), first_frame(None)  # compiled
        encoding, prefill, plain = [], [], []
        for _ in range(ROUNDS):
            started = time.perf_counter()
            prompt.build(program, voice.astype(np.float32), "text")
            encoding.append(time.perf_counter() - started)
            prefill.append(first_frame(columns))
            plain.append(first_frame(None))
        length = columns.shape[1]
        through = min(prefill) - min(plain)
        real = length * program.frame_size / program.sample_rate
    about = [
        f"{bench_support.processor()}, {threads} threads, jax {jax.__version__}; the fastest of {ROUNDS}.",
        f"{parameters / 1e6:.0f} M parameters, float32, batch 1: {VOICE_SECONDS:.0f} s of voice, {PIECES} pieces of "
        "text and the gaps; making the prompt encodes the voice, a tone and silence.",
    ]
    table = [["", "seconds", "per column", "times real time"]]
    table.append(
        [
            f"{length} columns through `step_tokens`",
            f"{through:.2f}",
            f"{1e3 * through / length:.1f} ms",
            f"{real / through:.2f}",
        ]
    )
    table.append(["making the prompt", f"{min(encoding):.2f}", "", f"{real / min(encoding):.2f}"])
    total = through + min(encoding)
    table.append(["both", f"{total:.2f}", f"{1e3 * total / length:.1f} ms", f"{real / total:.2f}"])
    bench_support.write_section("A prompted call: before it begins", "python tools/bench_prompt.py", about, table)


if __name__ == "__main__":
    main()

"""Time the encoding of several whole files, as data preparation does it, against PyTorch and the Rust codec.

python -m tools.bench.codec_files --reference-python reference/bin/python
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tools.bench import support

TITLE = "Codec: whole files for data preparation"
CODEBOOKS, FILES, SECONDS = 8, 8, 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    support.add_options(parser)
    parser.add_argument("--note", default="", help="a sentence about the machine, such as other work on it")
    options = parser.parse_args()
    support.limit_threads(options.threads)

    import numpy as np

    from moshijax import weights
    from moshijax.data.encoder import CodecEncoder
    from tests.parity import weights_by_name

    reference, clock = support.Reference(options), support.CLOCKS[options.clock]
    with tempfile.TemporaryDirectory() as scratch:
        description, _ = weights_by_name.load_fixture("mimi_full_long")
        directory = weights_by_name.write_checkpoint(Path(scratch), description)
        encoder = CodecEncoder(*weights.load_mimi(directory), num_codebooks=CODEBOOKS)
        for who in ("load_mimi", "load_rust"):
            reference(who, directory=str(directory), codebooks=CODEBOOKS)
    samples = SECONDS * encoder.sample_rate
    files = [(0.2 * np.random.default_rng(n).standard_normal(samples)).astype(np.float32) for n in range(FILES)]

    def ours() -> dict[str, list[float]]:
        started = clock()
        encoder.encode(files)
        return {"encode": [clock() - started]}

    amount = {"rows": FILES, "samples": samples}
    theirs = {"PyTorch": "mimi_batch", "Rust": "rust_batch"}
    runs = {name: lambda operation=operation: reference(operation, **amount) for name, operation in theirs.items()}
    times = support.in_turn(options.rounds, {"ours": ours, **runs})
    reference.close()
    found = {who: min(times[who]["encode"]) for who in times}
    rows = []
    for who, seconds in found.items():
        ratio = "" if who == "ours" else f"{seconds / found['ours']:.2f}"
        rows.append([who, f"{seconds:.2f} s", f"{FILES * SECONDS / seconds:.1f}", ratio])
    support.write_section(
        TITLE,
        support.command(options),
        [
            f"{support.environment(reference.version, options)} {options.note}".strip(),
            f"Full-size Mimi, {CODEBOOKS} codebooks, float32: {FILES} files of {SECONDS} s, ours by "
            "`data.encoder.CodecEncoder`, PyTorch's as one batch, Rust's one after the other.",
        ],
        [["", "time", "times real time", "ours is so many times faster"], *rows],
    )


if __name__ == "__main__":
    main()

"""Make the parity fixtures of tests/parity/fixtures by running the PyTorch reference.

    python3 -m venv reference && reference/bin/pip install moshi==0.2.13 transformers==5.23
    NO_TORCH_COMPILE=1 reference/bin/python -m tools.reference.fixtures [--only PREFIX] [--out DIR]
    NO_TORCH_COMPILE=1 reference/bin/python -m tools.reference.fixtures --record DIR --name NAME

The second line makes a record of any published weights for `moshijax weights verify`.
Everything runs in float32 on the CPU. Weights are not stored: `tests/parity/weights_by_name.py` fills them from a seed
and the published tensor name, here and in the tests alike. Every argmin (codebook search) and argmax (greedy token) is
watched: an input is kept only when the best candidate beats the second by more than MARGIN (in Euclidean distance, in
logits), so that any machine can be expected to give equal codes and tokens. tests/parity/README.md describes the files.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from tests.parity import weights_by_name
from tools.reference import codec, language, omni, record, synthesis, transformers, translation
from tools.reference.models import watch_codebooks, watch_sampling


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="make only the fixtures whose name starts with this")
    parser.add_argument("--out", type=Path, default=weights_by_name.FIXTURES)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--record", type=Path, help="instead, a record of the published directory given here")
    parser.add_argument("--name", type=Path, default=Path("reference"), help="of the record: NAME.json and NAME.npz")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(options.threads)
    watch_codebooks()
    watch_sampling()
    if options.record is not None:
        record.record(options.record, options.name.absolute())
        return
    makers = codec.makers(options.out) | language.makers(options.out)
    makers |= transformers.makers(options.out) | synthesis.makers(options.out)
    makers |= translation.makers(options.out) | omni.makers(options.out)
    for name, maker in makers.items():
        if name == options.only or (options.only not in makers and name.startswith(options.only)):
            maker()


if __name__ == "__main__":
    main()

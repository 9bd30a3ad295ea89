"""Write the codes that the PyTorch package gives with an exported codec.

python -m tools.reference.codes EXPORTED WAVEFORM.npy OUT.npz

EXPORTED is a directory made by `moshijax weights export --format kyutai`; WAVEFORM [B, N] float32, whole frames.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from moshi.models import loaders


def main(exported: str, waveform: str, out: str) -> None:
    (weights,) = Path(exported).glob("*.safetensors")
    configs = [json.loads(path.read_text(encoding="utf-8")) for path in Path(exported).glob("*.json")]
    (config,) = (config for config in configs if "seanet" in config)
    model = loaders.get_mimi(weights, config, num_codebooks=config["quantizer"]["n_q"])
    with torch.no_grad():
        codes = model.encode(torch.from_numpy(np.load(waveform))[:, None])
        decoded = model.decode(codes)[:, 0]
    np.savez(out, codes=codes.numpy().astype(np.int32), decoded=decoded.numpy())


if __name__ == "__main__":
    main(*sys.argv[1:])

"""Run the PyTorch package on an exported directory, loaded by its own loader.

    reference/bin/python -m tools.reference.generate DIRECTORY OUT.npz [--steps 40]

DIRECTORY is one of `moshijax weights export --format kyutai`: a language model with its codec and tokenizer. Writes the
given codes, greedily generated columns, a waveform with its codes and their decoding, and the smallest margin of every
choice. Float32 on the CPU.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import moshi.models.lm as reference_lm
import numpy as np
import torch
from moshi.models import loaders

from tests.parity import weights_by_name
from tools.reference.models import MARGINS, watch_codebooks, watch_sampling


def load(directory: Path) -> loaders.CheckpointInfo:
    """Return a published directory as the package reads it, without looking up names on a hub."""
    fields = json.loads((directory / "config.json").read_text())
    return loaders.CheckpointInfo.from_hf_repo(
        "local",
        moshi_weights=directory / fields.get("moshi_name", "model.safetensors"),
        mimi_weights=directory / fields["mimi_name"],
        tokenizer=directory / fields.get("tokenizer_name", "tokenizer.model"),
        config_path=directory / "config.json",
        mimi_config_path=directory / fields["mimi_config_name"],
    )


@torch.no_grad()
def generate(directory: Path, steps: int, seed: int = 7) -> dict[str, np.ndarray]:
    info = load(directory)
    model, mimi = info.get_moshi("cpu", dtype=torch.float32), info.get_mimi("cpu")
    given = weights_by_name.tokens(seed, (steps, 1, model.num_audio_codebooks - model.dep_q), model.card)
    generator = reference_lm.LMGen(model, use_sampling=False, check=True)
    out = []
    MARGINS.start()
    with generator.streaming(1):
        for column in given:
            made = generator.step(torch.from_numpy(column)[..., None])
            out.append(np.full((1, 1 + model.dep_q), -2) if made is None else made[..., 0].numpy())
    waveform = weights_by_name.clip(range(10), mimi.frame_size)[None]
    codes = mimi.encode(torch.from_numpy(waveform)[:, None])
    return {
        "given": given.astype(np.int32),
        "out": np.stack(out).astype(np.int32),
        "waveform": waveform,
        "codes": codes.numpy().astype(np.int32),
        "decoded": mimi.decode(codes)[:, 0].numpy(),
        "margin": np.float32(MARGINS.smallest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("directory", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    watch_codebooks()
    watch_sampling()
    np.savez_compressed(options.out, **generate(options.directory, options.steps))


if __name__ == "__main__":
    main()

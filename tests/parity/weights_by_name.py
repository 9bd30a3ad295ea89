"""Weights and inputs that are functions of a seed and a tensor name, so that fixtures need not store them.

The fixture maker (`tools/reference/fixtures.py`, run beside PyTorch) and the tests call the same functions. Every
value is built from `numpy.random.RandomState` bytes with exact float32 arithmetic: the same bits on every machine.
Only numpy is needed (and safetensors to write a file).
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

FIXTURES = Path(__file__).parent / "fixtures"


def uniform(random: np.random.RandomState, shape: Sequence[int]) -> np.ndarray:
    """Float32 values in (-1, 1), built from raw bytes: exact and fast."""
    count = math.prod(shape)
    words = np.frombuffer(random.bytes(4 * count), dtype="<u4")
    values = (words >> np.uint32(8)).astype(np.float32)
    values += np.float32(0.5)
    values *= np.float32(2.0**-23)
    values -= np.float32(1.0)
    return values.reshape(shape)


def tensor(name: str, shape: Sequence[int], seed: int) -> np.ndarray:
    """The float32 tensor `name` of the model `seed`; its scale follows from its published name and its shape.

    Scales keep activations near one, make layer scales, biases and positions visible in the outputs, and give greedy
    decoding something to choose from.
    """
    random = np.random.RandomState([seed, zlib.crc32(name.encode())])
    noise = uniform(random, shape)
    unit = noise * np.float32(math.sqrt(3.0))  # unit variance
    if re.search(r"codebook\._?initialized$", name):
        return np.ones(shape, np.float32)
    if name.endswith("codebook.cluster_usage"):
        usage = np.float32(0.6) * noise + np.float32(1.0)
        usage[0] = 0.0  # a dead code: exercises the lower bound of the division
        return usage
    if name.endswith(("codebook.embedding_sum", "codebook.embed_sum")):
        return unit * np.float32(0.3)
    if name.endswith(".scale"):
        level = 0.15 if "coder_transformer" in name else 0.5
        return np.float32(level) * (np.float32(1.0) + np.float32(0.3) * unit)
    if name.endswith(".alpha") or re.search(r"(norm.*|(^|[._])ln(\d|_post)?)\.weight$", name):
        return np.float32(1.0) + np.float32(0.15) * unit
    if name.endswith(".weight_g"):  # lengths of the rows of normed weights
        return np.float32(1.5) + np.float32(0.2) * unit
    if name.endswith(".bias"):
        return np.float32(0.1) * unit
    if re.search(r"(^|\.)(depformer_)?(text_)?emb(ed_tokens)?(\.\d+)?\.weight$", name):
        return np.float32(0.5) * unit
    gain = 1.5
    if name.startswith(("text_linear.", "extra_heads.", "lm_head.", "decoder.lm_head.")):
        gain = 3.0
    if name.startswith(("linears.", "depth_decoder.lm_heads.")):  # what the depth transformer adds up is large already
        gain = 0.5
    if len(shape) == 3 and not name.startswith("depth_decoder."):
        transposed = re.search(r"(^|\.)(decoder\.layers\.\d+|upsample)\.conv\.weight$", name) and shape[2] % 2 == 0
        if "convtr" in name or transposed:  # [in, out, kernel], kernel twice the stride: two taps for a sample
            fan_in = 2 * (1 if shape[1] == 1 and shape[0] > 1 and "upsample" in name else shape[0])
        else:
            fan_in = shape[1] * shape[2]
        gain = 1.0
        if "block.3" in name:  # the branch of a residual block
            gain = 0.7
        if "input_proj" in name:
            gain = 1.2
    else:
        fan_in = shape[-1]
    return unit * np.float32(gain / math.sqrt(fan_in))


def fill(shapes: Mapping[str, Sequence[int]], seed: int, zero_rows: Sequence[str] = ()) -> dict[str, np.ndarray]:
    """All tensors of a model: `{name: shape}` to `{name: float32 array}`; `zero_rows`: those whose last row is zero."""
    filled = {name: tensor(name, shape, seed) for name, shape in shapes.items()}
    for name in zero_rows:
        filled[name][-1] = 0
    return filled


def frame(seed: int, size: int) -> np.ndarray:
    """`size` float32 samples of noise at several speeds, in a mixture and with a loudness of its own per seed."""
    random = np.random.RandomState([seed, size])
    loudness = np.float32(0.05) + np.float32(0.4) * (uniform(random, (1,)) + np.float32(1.0))
    signal = np.zeros(size, np.float32)
    for hold in (1, 6, 40, 200, 900):
        noise = uniform(random, (-(-size // hold),))
        signal += uniform(random, (1,)) * np.repeat(noise, hold)[:size]
    return (signal * loudness).astype(np.float32)


def clip(frame_seeds: Sequence[int], size: int) -> np.ndarray:
    """Waveform `[N]`, one seed per frame of `size` samples (the maker picks the seeds frame by frame)."""
    return np.concatenate([frame(int(seed), size) for seed in frame_seeds])


def tokens(seed: int, shape: Sequence[int], high: int) -> np.ndarray:
    """int64 ids in [0, high)."""
    random = np.random.RandomState([seed, high])
    words = np.frombuffer(random.bytes(4 * math.prod(shape)), dtype="<u4").astype(np.int64)
    return (words % high).reshape(shape)


def load_fixture(name: str) -> tuple[dict, dict[str, np.ndarray]]:
    """`(description, arrays)` of the fixture `name`; the keys are listed in tests/parity/README.md."""
    description = json.loads((FIXTURES / f"{name}.json").read_text())
    with np.load(FIXTURES / f"{name}.npz") as arrays:
        return description, dict(arrays)


def quantised(weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """An int8 weight and the largest magnitude of each row, from which it is scaled."""
    largest = np.abs(weight).max(axis=1)
    return np.rint(weight * np.float32(127.0) / largest[:, None]).astype(np.int8), largest


def split_pairs(pairs: Mapping[str, np.ndarray], steps: Mapping[str, int]) -> dict[str, np.ndarray]:
    """Tensors of an adapter with the projections of attention apart, under the names that the package has in memory."""
    out = {}
    for name, array in pairs.items():
        match = re.match(r"(.*)\.(in|out)_proj\.(lora_[AB])\.weight$", name)
        if match is None:
            out[name] = array
            continue
        pieces = np.split(array, steps.get(name.split(".")[0], 1))
        out |= {f"{match[1]}.{match[2]}_projs.{i}.{match[3]}.weight": piece for i, piece in enumerate(pieces)}
    return out


def write_checkpoint(directory: Path, description: Mapping, split: bool = False) -> Path:
    """Writes the published form of a fixture's model, `model.safetensors` and `config.json`; returns the directory.

    Of a model with an adapter also `lora.safetensors`, under fused names or, with `split`, those of the package.
    """
    from safetensors.numpy import save_file

    directory.mkdir(parents=True, exist_ok=True)
    filled = fill(description["tensors"], description["seed"], description.get("zero_rows", ()))
    for name in description.get("int8", ()):
        filled[name], filled[f"{name}_scb"] = quantised(filled[name])
    save_file(filled, str(directory / "model.safetensors"))
    if "adapter" in description:
        pairs = fill(description["adapter"], description["seed"])
        pairs = split_pairs(pairs, {"depformer": description["depth_weights"]}) if split else pairs
        save_file(pairs, str(directory / "lora.safetensors"))
    (directory / "config.json").write_text(json.dumps(description["config"]))
    return directory

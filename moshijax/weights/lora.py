"""LoRA adapters of the PyTorch package (`modules/lora.py`, `finetune` of `moshi`): `W + scaling * B A`.

An adapter file holds `<linear>.lora_A.weight [rank, in]` and `<linear>.lora_B.weight [out, rank]` for bias-free linear
maps. Attention names are split (`in_projs.0`) or, in older files, fused (`in_proj`) with the steps stacked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.errors import DataError
from moshijax.weights.kyutai import LINEAR
from moshijax.weights.names import Group, View, renamed
from moshijax.weights.safetensors import open_tensors

_SPLIT = re.compile(r"^(.*)\.(in|out)_projs\.(\d+)\.(lora_[AB])\.weight$")
_NAME = re.compile(r"^(.*)\.(lora_[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """An adapter file.

    Attributes:
        path: of the file, which is kept as it is.
        scaling: factor of the product.
        rank: of every pair, None: as the file has it.
    """

    path: Path
    scaling: float
    rank: int | None = None


def _stem(weight: str) -> str:
    """What adapter names of a published weight begin with, fused."""
    return weight.removesuffix("_weight") if weight.endswith(".in_proj_weight") else weight.removesuffix(".weight")


def _pairs(file: Any, where: str) -> dict[str, dict[str, list[str]]]:
    """Stem -> "lora_A", "lora_B" -> tensors of it in the order of the steps."""
    numbered: dict[str, dict[str, dict[int, str]]] = {}
    for name in file.shapes:
        if match := _SPLIT.match(name):
            stem, part, step = f"{match[1]}.{match[2]}_proj", match[4], int(match[3])
        elif match := _NAME.match(name):
            stem, part, step = match[1], match[2], 0
        else:
            raise DataError(f"{where}: {name} is no part of an adapter (lora_A, lora_B); name an adapter file")
        numbered.setdefault(stem, {}).setdefault(part, {})[step] = name
    found = {
        stem: {part: [steps[i] for i in sorted(steps)] for part, steps in parts.items()}
        for stem, parts in numbered.items()
    }
    for stem, parts in found.items():
        if set(parts) != {"lora_A", "lora_B"} or len(parts["lora_A"]) != len(parts["lora_B"]):
            raise DataError(f"{where}: {stem} has lora_A and lora_B for different steps or lacks one; fetch it again")
    return found


def check(tensors: Any, adapter: Adapter, depth_weights: int) -> dict[str, dict[str, list[str]]]:
    """Pairs by published weight; every tensor of the file belongs to one, and they are not zero.

    Args:
        tensors: the published tensors of the model.
        depth_weights: attention weights of every layer of its depth transformer.

    Raises:
        DataError: names or shapes that do not fit the model (both shapes are named), or an adapter that does nothing.
    """
    where, file = str(adapter.path), open_tensors(adapter.path)
    pairs = _pairs(file, where)
    if not pairs:
        raise DataError(f"{where} holds no adapter; fetch it again")
    linear = {_stem(name): name for name in tensors.shapes if LINEAR.search(name)}
    problems = [f"{stem} is no linear map of the model" for stem in pairs if stem not in linear]
    for stem, parts in pairs.items():
        if stem in linear:
            problems += _misfits(file, stem, parts, tensors.shapes[linear[stem]], adapter, depth_weights)
    if problems:
        shown = "; ".join(problems[:8]) + (f" and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise DataError(f"{where} does not fit the model: {shown}; use the adapter of this model")
    zero = [stem for stem, parts in pairs.items() if not any(np.any(file[name]) for name in parts["lora_B"])]
    if 2 * len(zero) > len(pairs):
        raise DataError(
            f"{where}: {len(zero)} of {len(pairs)} lora_B are zero, {zero[0]} for one, so that the adapter does "
            "nothing there; it was saved before training, or not gathered from all devices"
        )
    return {linear[stem]: parts for stem, parts in pairs.items()}


def _misfits(file: Any, stem: str, parts: dict[str, list[str]], shape, adapter: Adapter, depth_weights: int) -> list:
    """What is wrong with the shapes of a pair."""
    count = _count(stem, depth_weights)
    a = [sum(file.shapes[name][0] for name in parts["lora_A"]), *file.shapes[parts["lora_A"][0]][1:]]
    b = [sum(file.shapes[name][0] for name in parts["lora_B"]), *file.shapes[parts["lora_B"][0]][1:]]
    rank = b[1] if adapter.rank is None and len(b) == 2 else adapter.rank
    want = [count * rank, shape[1]], [shape[0], rank]
    if [a, b] == list(want):
        return []
    return [f"{stem}: file {a} and {b}, model {want[0]} and {want[1]}"]


def _count(stem: str, depth_weights: int) -> int:
    return depth_weights if stem.startswith("depformer.") and stem.endswith(("in_proj", "out_proj")) else 1


def merged(tensors: Any, adapter: Adapter, depth_weights: int) -> View:
    """The published tensors with the adapter added; sums are float32, the types those of the weights."""
    pairs, file = check(tensors, adapter, depth_weights), open_tensors(adapter.path)

    def add(name: str, weight: np.ndarray) -> np.ndarray:
        count = _count(_stem(name), depth_weights)
        a, b = (
            np.concatenate([file[part] for part in pairs[name][letter]]).astype(np.float32)
            for letter in ("lora_A", "lora_B")
        )
        product = np.matmul(b.reshape(count, -1, b.shape[1]), a.reshape(count, -1, a.shape[1]))
        total = weight.astype(np.float32) + np.float32(adapter.scaling) * product.reshape(weight.shape)
        return total.astype(weight.dtype)

    groups = [
        Group({name: shape}, {name: shape}, lambda arrays, name=name: [add(name, arrays[0])])
        if name in pairs
        else renamed(name, name, shape)
        for name, shape in tensors.shapes.items()
    ]
    return View(tensors, groups, reading=True)

"""LoRA adapters of the PyTorch package (`modules/lora.py`, `finetune` of `moshi`): `W + scaling * B A`.

An adapter file holds `<linear>.lora_A.weight [rank, in]` and `<linear>.lora_B.weight [out, rank]` for bias-free linear
maps. Attention names are split (`in_projs.0`) or, in older files, fused (`in_proj`) with the steps stacked.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.lm.config import LMConfig
from moshijax.nn.lora import LoRA
from moshijax.weights.formats.fields import ADAPTER_FIELDS, checked
from moshijax.weights.formats.kyutai import linear_maps, stem_of
from moshijax.weights.formats.lm_table import depth_weights, lm_table, module_of
from moshijax.weights.model import OpenedModel
from moshijax.weights.names import Group, Renamed, concatenated, renamed
from moshijax.weights.published import CONFIG_FILE, read_json
from moshijax.weights.safetensors import open_tensors
from moshijax.weights.tensors import Combined, Finite, Tensors

_SPLIT = re.compile(r"^(.*)\.(in|out)_projs\.(\d+)\.(lora_[AB])\.weight$")
_NAME = re.compile(r"^(.*)\.(lora_[AB])\.weight$")
_FUSED = re.compile(r"^(.*)\.(in|out)_proj\.(lora_[AB])\.weight$")


@dataclass(frozen=True)
class Adapter:
    """The updates of a model.

    Attributes:
      tensors: `<linear>.lora_A.weight`, `<linear>.lora_B.weight`, names and steps fused.
      scaling: factor of the products.
      where: for messages.
      path: of the file they come from, which is kept as it is; None: they were trained here.
      rank: of every pair, None: as it is.
    """

    tensors: Tensors
    scaling: float
    where: Path
    path: Path | None = None
    rank: int | None = None

    @property
    def pairs(self) -> list[str]:
        """The linear maps that have one."""
        return [name.removesuffix(".lora_B.weight") for name in self.tensors.shapes if name.endswith("lora_B.weight")]


def open_adapter(path: Path, scaling: float, rank: int | None) -> Adapter:
    """Open the adapter in a file.

    Raises:
      DataError: the file holds something else, or half of an adapter.
    """
    return Adapter(Finite(_fused(open_tensors(path), str(path)), path), scaling, path, path, rank)


def _fused(file: Tensors, where: str) -> Renamed:
    """The tensors of a file under fused names."""
    found: dict[str, dict[str, dict[int, str]]] = {}
    for name in file.shapes:
        if match := _SPLIT.match(name):
            stem, part, step = f"{match[1]}.{match[2]}_proj", match[4], int(match[3])
        elif match := _NAME.match(name):
            stem, part, step = match[1], match[2], 0
        else:
            raise DataError(f"{where}: {name} is no part of an adapter (lora_A, lora_B); name an adapter file")
        found.setdefault(stem, {}).setdefault(part, {})[step] = name
    if not found:
        raise DataError(f"{where} holds no adapter; fetch it again")
    groups = []
    for stem, parts in found.items():
        if set(parts) != {"lora_A", "lora_B"} or len(parts["lora_A"]) != len(parts["lora_B"]):
            raise DataError(f"{where}: {stem} has lora_A and lora_B for different steps or lacks one; fetch it again")
        for part, steps in parts.items():
            names = [steps[i] for i in sorted(steps)]
            rows, *rest = file.shapes[names[0]]
            if any(tuple(file.shapes[name]) != (rows, *rest) for name in names):
                raise DataError(f"{where}: {part} of {stem} has steps of different shapes; fetch it again")
            groups.append(concatenated(names, f"{stem}.{part}.weight", (len(names) * rows, *rest)))
    return Renamed(file, groups, reading=True)


def split(tensors: Tensors, depth_weights: int) -> Renamed:
    """View fused pairs under the names that the package has in memory; `depth_weights` as in `check`."""
    groups = []
    for name, shape in tensors.shapes.items():
        if match := _FUSED.match(name):
            names = [f"{match[1]}.{match[2]}_projs.{i}.{match[3]}.weight" for i in range(_count(name, depth_weights))]
            groups.append(concatenated(names, name, shape))
        else:
            groups.append(renamed(name, name, shape))
    return Renamed(tensors, groups, reading=False)


def check(tensors: Tensors, adapter: Adapter, depth_weights: int) -> dict[str, str]:
    """Find the linear map to which every pair of an adapter adds.

    Args:
      tensors: the published tensors of the model.
      adapter: whose pairs must all fit.
      depth_weights: attention weights of every layer of its depth transformer.

    Returns:
      Published weight -> the linear map of the pair that adds to it.

    Raises:
      DataError: names or shapes that do not fit the model (both shapes are named), or an adapter that does nothing.
    """
    pairs, shapes = adapter.pairs, adapter.tensors.shapes
    linear = {stem_of(name): name for name in linear_maps(tensors)}
    problems = []
    for stem in pairs:
        if stem not in linear:
            problems.append(f"{stem} is no linear map of the model")
            continue
        rows, columns = tensors.shapes[linear[stem]]
        a, b = (list(shapes[f"{stem}.lora_{letter}.weight"]) for letter in "AB")
        rank = b[-1] if adapter.rank is None else adapter.rank
        want = [_count(stem, depth_weights) * rank, columns], [rows, rank]
        if (a, b) != want:
            problems.append(f"{stem}: file {a} and {b}, model {want[0]} and {want[1]}")
    if problems:
        shown = "; ".join(problems[:8]) + (f" and {len(problems) - 8} more" if len(problems) > 8 else "")
        raise DataError(f"{adapter.where} does not fit the model: {shown}; use the adapter of this model")
    zero = [stem for stem in pairs if not np.any(adapter.tensors[f"{stem}.lora_B.weight"])]
    if 2 * len(zero) > len(pairs):
        raise DataError(
            f"{adapter.where}: {len(zero)} of {len(pairs)} lora_B are zero, {zero[0]} for one, so that the adapter "
            "does nothing there; it was saved before training, or not gathered from all devices"
        )
    return {linear[stem]: stem for stem in pairs}


def _count(stem: str, depth_weights: int) -> int:
    return depth_weights if stem.startswith("depformer.") and ("in_proj" in stem or "out_proj" in stem) else 1


def merged(tensors: Tensors, adapter: Adapter, depth_weights: int) -> Renamed:
    """View the published tensors with the adapter added; sums are float32, the types those of the weights."""
    pairs = check(tensors, adapter, depth_weights)

    def add(name: str, weight: np.ndarray) -> np.ndarray:
        count = _count(pairs[name], depth_weights)
        a, b = (adapter.tensors[f"{pairs[name]}.lora_{letter}.weight"].astype(np.float32) for letter in "AB")
        product = np.matmul(b.reshape(count, -1, b.shape[1]), a.reshape(count, -1, a.shape[1]))
        total = weight.astype(np.float32) + np.float32(adapter.scaling) * product.reshape(weight.shape)
        return total.astype(weight.dtype)

    groups = [
        Group({name: shape}, {name: shape}, lambda arrays, name=name: [add(name, arrays[0])])
        if name in pairs
        else renamed(name, name, shape)
        for name, shape in tensors.shapes.items()
    ]
    return Renamed(tensors, groups, reading=True)


def with_updates(config: LMConfig, adapter: Adapter) -> LMConfig:
    """Return the config of the model in which the adapter is a part of the layers.

    Raises:
      ConfigError: pairs of different ranks or types, of some layers only, or of maps that have no place for one.
    """
    shapes, types = adapter.tensors.shapes, adapter.tensors.dtypes
    ranks = sorted({shapes[f"{stem}.lora_B.weight"][1] for stem in adapter.pairs})
    kinds = sorted({dtype.name for dtype in types.values()})
    if len(ranks) > 1 or len(kinds) > 1:
        raise ConfigError(f"{adapter.where} has ranks {ranks} and types {kinds}: its pairs must be alike; merge it")
    own = None if kinds[0] == config.temporal.param_dtype else kinds[0]
    update = LoRA(ranks[0], adapter.scaling, param_dtype=own)
    every = _modules(replace(config, lora=update))
    covered = sorted({every[name] for name in shapes if name in every})
    if set(covered) < set(every.values()):
        update = replace(update, modules=tuple(covered))
    config = replace(config, lora=update)
    odd = sorted(set(_modules(config)) ^ set(shapes))
    if odd:
        what = "has no place in the layers" if odd[0] in shapes else "is missing, which other layers have"
        raise ConfigError(f"{adapter.where}: {odd[0]} {what}; merge the adapter into the weights")
    return config


def with_adapter(model: OpenedModel, path: Path) -> OpenedModel:
    """Add the adapter in a file to a model; scaling and rank as the config.json beside it, or of the model, says.

    Raises:
      DataError: the adapter does not fit, or changes nothing.
    """
    beside = path.parent / CONFIG_FILE
    fields = {**model.provenance.config, **(read_json(beside) if beside.is_file() else {})}
    fields = checked(fields, ADAPTER_FIELDS, str(beside))
    adapter = open_adapter(path, fields.get("lora_scaling", 2.0), fields.get("lora_rank"))
    stated = {"lora": True, "lora_scaling": adapter.scaling, "lora_name": path.name}
    stated |= {} if adapter.rank is None else {"lora_rank": adapter.rank}
    config = {**model.provenance.config, **stated}
    return attached(replace(model, provenance=replace(model.provenance, config=config)), adapter)


def attached(model: OpenedModel, adapter: Adapter) -> OpenedModel:
    """Return the model with an adapter added to what its parameters are made of.

    Raises:
      DataError: the adapter does not fit, or changes nothing.
    """
    stored = merged(model.tensors, adapter, depth_weights(model.config))
    return replace(model, table=lm_table(model.config), stored=stored, adapter=adapter)


def unmerged(model: OpenedModel) -> OpenedModel:
    """Return the model with its adapter as parameters of its own (`config.lora`); one without it unchanged.

    Raises:
      ConfigError: an adapter that can only be merged.
    """
    if model.adapter is None:
        return model
    config = with_updates(model.config, model.adapter)
    tensors = Combined(model.tensors, model.adapter.tensors)
    return replace(model, config=config, table=lm_table(config), stored=tensors)


def _modules(config: LMConfig) -> dict[str, str]:
    """Names of pairs -> paths of their maps in the model."""
    table = lm_table(config)
    return {name: module_of(table[name].targets[0][0]) for name in table if _NAME.match(name)}

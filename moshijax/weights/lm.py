"""Published language models (PyTorch names) in, and our parameters out under the same names."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from moshijax import lm
from moshijax.errors import DataError
from moshijax.lm.config import LMConfig, LookupConditioner
from moshijax.nn.layout import pack_in_proj, stack_layers, unpack_in_proj, unstack_layers
from moshijax.nn.norms import NORM_KINDS
from moshijax.nn.transformer import TransformerConfig
from moshijax.weights.lm_config import LEGACY_7B, lm_config, published_config
from moshijax.weights.safetensors import TensorFile, check_names_and_shapes

Target = tuple[str, int | None]  # path in our tree ("a/b/c"), and the slot of its leading axis if it fills only one


@dataclass(frozen=True)
class Entry:
    """One published tensor: `split` makes the pieces of our tree of it, `join` makes it of them."""

    shape: tuple[int, ...]
    targets: tuple[Target, ...]
    split: Callable[[np.ndarray], list[np.ndarray]]
    join: Callable[[list[np.ndarray]], np.ndarray]


def _plain(shape: tuple[int, ...], path: str, slot: int | None = None, ours: tuple[int, ...] | None = None) -> Entry:
    inner = ours or shape
    return Entry(shape, ((path, slot),), lambda a: [a.reshape(inner)], lambda p: p[0].reshape(shape))


def _norm(
    entries: dict[str, Entry], name: str, kind: str, dim: int, path: str, slot: int | None = None, stem: str = ""
) -> None:
    """Norms are `alpha [1, 1, D]`, or `weight` and `bias`."""
    if NORM_KINDS[kind][0]:
        entries[f"{name}.weight"] = _plain((dim,), f"{path}/{stem}scale", slot)
        entries[f"{name}.bias"] = _plain((dim,), f"{path}/{stem}bias", slot)
    else:
        entries[f"{name}.alpha"] = _plain((1, 1, dim), f"{path}/{stem}scale", slot, (dim,))


def _attention(entries: dict[str, Entry], name: str, c: TransformerConfig, path: str, weights: int | None) -> None:
    """Fused projections; with weights per step they are stacked step-major in one tensor."""
    count = 1 if weights is None else weights
    rows = (c.num_heads + 2 * (c.num_heads // c.kv_repeat)) * (c.dim // c.num_heads)

    def targets(part: str) -> tuple[Target, ...]:
        if weights is None:
            return ((f"{path}/{part}/kernel", None),)
        return tuple((f"{path}/{part}/steps_{s}/kernel", None) for s in range(count))

    entries[f"{name}.in_proj_weight"] = Entry(
        (count * rows, c.dim),
        targets("in_proj"),
        lambda a: [pack_in_proj(piece, c.num_heads, c.kv_repeat) for piece in np.split(a, count)],
        lambda pieces: np.concatenate([unpack_in_proj(piece, c.num_heads, c.kv_repeat) for piece in pieces]),
    )
    entries[f"{name}.out_proj.weight"] = Entry(
        (count * c.dim, c.dim), targets("out_proj"), lambda a: np.split(a, count), np.concatenate
    )


def _cross_attention(entries: dict[str, Entry], name: str, c: TransformerConfig, path: str) -> None:
    """One fused projection: queries of the sequence, then keys and values of the source."""
    _norm(entries, f"{name}.norm_cross", "layer_norm", c.dim, f"{path}/norm_cross")
    if c.layer_scale is not None:
        entries[f"{name}.layer_scale_cross.scale"] = _plain((c.dim,), f"{path}/layer_scale_cross/scale")
    entries[f"{name}.cross_attention.in_proj_weight"] = Entry(
        (3 * c.dim, c.dim),
        tuple((f"{path}/cross_attention/{part}_proj/kernel", None) for part in "qkv"),
        lambda a: np.split(a, 3),
        np.concatenate,
    )
    entries[f"{name}.cross_attention.out_proj.weight"] = _plain(
        (c.dim, c.dim), f"{path}/cross_attention/out_proj/kernel"
    )


def _mlp(
    entries: dict[str, Entry], name: str, c: TransformerConfig, path: str, steps: list[tuple[str, str, int]]
) -> None:
    """`steps`: published infix, our suffix and hidden width of every distinct weight."""
    for infix, suffix, hidden in steps:
        spare = c.hidden_dim - hidden
        rows, columns = ((0, spare), (0, 0)), ((0, 0), (0, spare))

        def target(part: str, suffix=suffix) -> Target:
            return f"{path}/{part}{suffix}/kernel", None

        down = Entry(
            (c.dim, hidden),
            (target("down"),),
            lambda a, pad=columns: [np.pad(a, pad)],
            lambda pieces, width=hidden: pieces[0][:, :width],
        )
        if c.gating == "none":
            entries[f"{name}.linear1{infix}.weight"] = _plain((hidden, c.dim), target("up")[0])
            entries[f"{name}.linear2{infix}.weight"] = down
        else:
            entries[f"{name}.gating{infix}.linear_in.weight"] = Entry(
                (2 * hidden, c.dim),
                (target("gate"), target("up")),
                lambda a, pad=rows: [np.pad(half, pad) for half in np.split(a, 2)],
                lambda pieces, width=hidden: np.concatenate([piece[:width] for piece in pieces]),
            )
            entries[f"{name}.gating{infix}.linear_out.weight"] = down


def _layers(entries: dict[str, Entry], name: str, c: TransformerConfig, path: str, depth: Any = None, dep_q=0) -> None:
    """The layers of a stack; `depth` gives weights per step."""
    steps, weights = [("", "", c.hidden_dim)], None
    if depth is not None:
        weights = len(set(depth.step_weights(dep_q)))
        widths = depth.hidden_dims or (c.hidden_dim,) * weights
        steps = [(f".{s}" if depth.weights_per_step else "", f"/steps_{s}", widths[s]) for s in range(weights)]
    for i in range(c.num_layers):
        here, there = f"{name}.layers.{i}", f"{path}/layers_{i}"
        for number in (1, 2):
            _norm(entries, f"{here}.norm{number}", c.norm, c.dim, f"{there}/norm{number}")
            if c.layer_scale is not None:
                entries[f"{here}.layer_scale_{number}.scale"] = _plain((c.dim,), f"{there}/layer_scale_{number}/scale")
        _attention(entries, f"{here}.self_attn", c, f"{there}/attention", weights)
        if c.cross_attention:
            _cross_attention(entries, here, c, there)
        _mlp(entries, here, c, f"{there}/mlp", steps)


def _tables(
    entries: dict[str, Entry],
    name: str,
    slot: int,
    vocab: int,
    dim: int,
    path: str,
    low_rank: int | None,
    norm: bool,
    demux: bool = False,
) -> None:
    width = low_rank or dim
    entries[f"{name}.weight"] = _plain((vocab, width), f"{path}/table", slot)
    for part in ("out1", "out2") if demux else ():
        entries[f"{name}.{part}.weight"] = _plain((dim, width), f"{path}/{part}", slot)
    if low_rank is not None:
        entries[f"{name}.low_rank.weight"] = _plain((dim, width), f"{path}/low_rank", slot)
    if norm:
        _norm(entries, f"{name}.norm", "layer_norm", width, path, slot, stem="norm_")


def _head(entries: dict[str, Entry], name: str, rows: int, dim: int, path: str, bias: bool) -> None:
    entries[f"{name}.weight"] = _plain((rows, dim), f"{path}/kernel")
    if bias:
        entries[f"{name}.bias"] = _plain((rows,), f"{path}/bias")


def published_entries(config: LMConfig) -> dict[str, Entry]:
    """Every published tensor of a model (fused names), with its place in the inference layout."""
    entries: dict[str, Entry] = {}
    dim, dep_q, depth = config.temporal.dim, config.layout.dep_q, config.depth
    for q in range(config.layout.n_q):
        _tables(entries, f"emb.{q}", q, config.card + 1, dim, "audio_embedding", None, config.norm_emb)
    tables = (dim, "text_embedding", None, config.norm_emb, config.demux_text)
    _tables(entries, "text_emb", 0, config.text_card + 1, *tables)
    _head(entries, "text_linear", config.text_vocab, dim, "text_head", config.bias_proj)
    _norm(entries, "out_norm", config.temporal.norm, dim, "out_norm")
    _layers(entries, "transformer", config.temporal, "temporal")
    for i in range(config.extra_heads):
        entries[f"extra_heads.{i}.weight"] = _plain((config.extra_heads_dim, dim), "extra_heads", i)
    for c in config.conditioners:
        name, path = f"condition_provider.conditioners.{c.name}", f"conditioners_{c.name}"
        if isinstance(c, LookupConditioner):
            entries[f"{name}.embed.weight"] = _plain((c.bins + 1, c.dim), f"{path}/table")
        entries[f"{name}.output_proj.weight"] = _plain((dim, c.dim), f"{path}/kernel")
        entries[f"{name}.learnt_padding"] = _plain((1, 1, dim), f"{path}/absent", None, (dim,))
    # The published module makes one input projection even without a depth transformer.
    if depth is None:
        return entries
    inner = depth.transformer
    for s in range(len(set(depth.input_weights(dep_q)))):
        _head(entries, f"depformer_in.{s}", inner.dim, dim, f"depth/inputs/steps_{s}", False)
    tables = (inner.dim, "depth/text_embedding", depth.low_rank, config.norm_emb, config.demux_text)
    _tables(entries, "depformer_text_emb", 0, config.text_card + 1, *tables)
    tables = (inner.dim, "depth/audio_embedding", depth.low_rank, config.norm_emb)
    for q in range(dep_q - 1):
        _tables(entries, f"depformer_emb.{q}", q, config.card + 1, *tables)
    _layers(entries, "depformer", inner, "depth", depth, dep_q)
    for k in range(dep_q):
        if depth.output_norm is not None:
            _norm(entries, f"depformer_norms.{k}", depth.output_norm, inner.dim, "depth/output_norm", k)
        _head(entries, f"linears.{k}", config.card, inner.dim, f"depth/heads/steps_{k}", config.bias_proj)
    return entries


_SPLIT = re.compile(r"^(.*)\.(in|out)_projs\.(\d+)\.weight$")


class _FusedNames:
    """A tensor file under fused names: split projections are put together, older spellings are renamed."""

    def __init__(self, tensors: Mapping[str, np.ndarray], shapes: Mapping[str, tuple[int, ...]]):
        self._tensors = tensors
        self._parts: dict[str, list[str]] = {}
        numbered: dict[str, dict[int, str]] = {}
        for name in shapes:
            if match := _SPLIT.match(name):
                fused = f"{match[1]}.in_proj_weight" if match[2] == "in" else f"{match[1]}.out_proj.weight"
                numbered.setdefault(fused, {})[int(match[3])] = name
            elif name.endswith(".in_proj.weight"):
                self._parts[name.removesuffix(".in_proj.weight") + ".in_proj_weight"] = [name]
            else:
                self._parts[name] = [name]
        for fused, parts in numbered.items():
            self._parts[fused] = [parts[i] for i in sorted(parts)]
        self.shapes = {
            name: (sum(shapes[p][0] for p in parts), *shapes[parts[0]][1:]) if len(parts) > 1 else shapes[parts[0]]
            for name, parts in self._parts.items()
        }

    def __getitem__(self, name: str) -> np.ndarray:
        parts = [self._tensors[part] for part in self._parts[name]]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)


def from_published(
    config: LMConfig, tensors: Mapping[str, np.ndarray], where: str = "weights", shapes: Mapping | None = None
) -> dict[str, Any]:
    """Our parameters (inference layout, numpy) of published tensors, fused or split names.

    Raises:
        DataError: missing, unexpected and mis-shaped tensors, listed together with both shapes.
    """
    fused = _FusedNames(tensors, shapes or {name: tensor.shape for name, tensor in tensors.items()})
    entries = published_entries(config)
    # Without a depth transformer the published module still has its unused input projection.
    ignored = ("depformer_in.0.weight",) if config.depth is None else ()
    check_names_and_shapes(where, fused.shapes, {name: entry.shape for name, entry in entries.items()}, ignored)
    abstract = flatten_dict(lm.abstract(config, stacked=False), sep="/")
    flat: dict[str, np.ndarray] = {}
    for name, entry in entries.items():
        for (path, slot), piece in zip(entry.targets, entry.split(fused[name]), strict=True):
            leaf = abstract[path]
            if slot is None:
                flat[path] = np.asarray(piece, leaf.dtype)
            else:
                flat.setdefault(path, np.empty(leaf.shape, leaf.dtype))[slot] = piece
    return unflatten_dict(flat, sep="/")


def to_published(config: LMConfig, params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Published tensors (fused names) of our parameters, in either layout."""
    flat = {path: np.asarray(leaf) for path, leaf in flatten_dict(unstack_layers(params), sep="/").items()}
    out = {}
    for name, entry in published_entries(config).items():
        pieces = [flat[path] if slot is None else flat[path][slot] for path, slot in entry.targets]
        out[name] = np.ascontiguousarray(entry.join(pieces))
    return out


def load_lm(path: str | Path, dtype: str | None = None, stacked: bool = False) -> tuple[LMConfig, dict[str, Any]]:
    """A language model from a published weight file, a directory with `model.safetensors` and `config.json`, or a run.

    Args:
        path: a file without a `config.json` beside it is read as the released Moshi 7B.
        dtype: type of the parameters and of the computation; by default that of the file.
        stacked: True for the training layout.

    Returns:
        `(config, params)`; `params` is a tree of numpy arrays, of jax arrays from a run.

    Raises:
        DataError: nothing readable there, or the tensors do not fit the config.
        ConfigError: a config.json that cannot be used.
    """
    path = Path(path)
    if path.is_dir() and (path / "checkpoints").is_dir():
        kind, config, params, _ = importlib.import_module("moshijax.train.checkpoint").load_run(path)
        if kind != "lm":
            raise DataError(f"{path} is a run of a {kind}, a language model is needed; name a run of an lm recipe")
        if dtype is not None:
            config = config.with_dtype(dtype, dtype)
            params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
        return config, params if stacked else unstack_layers(params)
    folder = path if path.is_dir() else path.parent
    published = dict(LEGACY_7B)
    if (folder / "config.json").is_file():
        try:
            published = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        except ValueError as error:
            raise DataError(f"{folder / 'config.json'} is not JSON ({error}); fetch it again") from None
    elif path.is_dir():
        raise DataError(f"{path} has no config.json; name a weight file, or a directory with its config.json")
    if not isinstance(published, dict):
        raise DataError(f"{folder / 'config.json'} is not the config of a model (a JSON object); fetch it again")
    config = lm_config(published)
    file = path / str(published.get("moshi_name", "model.safetensors")).split("/")[-1] if path.is_dir() else path
    tensors = TensorFile(file)
    if dtype is None:
        kinds = {str(tensors.dtypes[name]) for name in tensors if name.startswith("transformer.")}
        dtype = kinds.pop() if len(kinds) == 1 and kinds <= {"float32", "bfloat16", "float16"} else "float32"
    config = config.with_dtype(dtype, dtype)
    params = from_published(config, tensors, str(file), tensors.shapes)
    if published.get("model_type") == "hibiki":  # an end of text must not end the translation
        table = params["text_embedding"]["table"]
        table[0, lm.tokens.EOS] = table[0, lm.tokens.PAD]
    return config, stack_layers(params) if stacked else params


def save_config(config: LMConfig) -> str:
    """`config.json` of a model, as text."""
    return json.dumps(published_config(config), indent=2) + "\n"

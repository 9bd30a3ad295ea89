"""Every tensor of a published language model (fused names) and its place among our parameters."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict

from moshijax.lm.config import LMConfig, LookupConditioner
from moshijax.lm.model import abstract
from moshijax.nn.layout import pack_in_proj, unpack_in_proj
from moshijax.nn.lora import map_name
from moshijax.nn.norms import NORM_KINDS
from moshijax.nn.transformer import TransformerConfig
from moshijax.weights.formats.kyutai import LINEAR, stem_of
from moshijax.weights.table import Entry, Target, plain

#: Published maps whose rows have another order or number among our parameters.
_ROWS = (".in_proj_weight", ".out_proj.weight", ".linear_in.weight")


def _norm(
    entries: dict[str, Entry], name: str, kind: str, dim: int, path: str, slot: int | None = None, stem: str = ""
) -> None:
    """Norms are `alpha [1, 1, D]`, or `weight` and `bias`."""
    if NORM_KINDS[kind][0]:
        entries[f"{name}.weight"] = plain((dim,), f"{path}/{stem}scale", slot)
        entries[f"{name}.bias"] = plain((dim,), f"{path}/{stem}bias", slot)
    else:
        entries[f"{name}.alpha"] = plain((1, 1, dim), f"{path}/{stem}scale", slot, (dim,))


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
    width = c.dim // c.kv_repeat  # of keys and values
    for part in c.attention_biases:
        entries[f"{name}.{part}_bias"] = plain((width if part in "kv" else c.dim,), f"{path}/{part}_bias")


def _cross_attention(entries: dict[str, Entry], name: str, c: TransformerConfig, path: str) -> None:
    """One fused projection: queries of the sequence, then keys and values of the source."""
    _norm(entries, f"{name}.norm_cross", "layer_norm", c.dim, f"{path}/norm_cross")
    if c.layer_scale is not None:
        entries[f"{name}.layer_scale_cross.scale"] = plain((c.dim,), f"{path}/layer_scale_cross/scale")
    entries[f"{name}.cross_attention.in_proj_weight"] = Entry(
        (3 * c.dim, c.dim),
        tuple((f"{path}/cross_attention/{part}_proj/kernel", None) for part in "qkv"),
        lambda a: np.split(a, 3),
        np.concatenate,
    )
    entries[f"{name}.cross_attention.out_proj.weight"] = plain(
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
            entries[f"{name}.linear1{infix}.weight"] = plain((hidden, c.dim), target("up")[0])
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
                entries[f"{here}.layer_scale_{number}.scale"] = plain((c.dim,), f"{there}/layer_scale_{number}/scale")
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
    entries[f"{name}.weight"] = plain((vocab, width), f"{path}/table", slot)
    for part in ("out1", "out2") if demux else ():
        entries[f"{name}.{part}.weight"] = plain((dim, width), f"{path}/{part}", slot)
    if low_rank is not None:
        entries[f"{name}.low_rank.weight"] = plain((dim, width), f"{path}/low_rank", slot)
    if norm:
        _norm(entries, f"{name}.norm", "layer_norm", width, path, slot, stem="norm_")


def _head(entries: dict[str, Entry], name: str, rows: int, dim: int, path: str, bias: bool) -> None:
    entries[f"{name}.weight"] = plain((rows, dim), f"{path}/kernel")
    if bias:
        entries[f"{name}.bias"] = plain((rows,), f"{path}/bias")


def lm_table(config: LMConfig) -> dict[str, Entry]:
    """Return every published tensor of a model (fused names), with its place in the inference layout."""
    entries = _weights(config)
    return entries if config.lora is None else {**entries, **_updates(config, entries)}


def module_of(path: str) -> str:
    """Return the path of the linear map to which an update at `path` belongs, as `moshijax.nn.lora.LoRA` names it."""
    return map_name(re.sub(r"[/_]lora_[ab]$", "", path))


def _updates(config: LMConfig, entries: dict[str, Entry]) -> dict[str, Entry]:
    """Low-rank updates: the rows of B are those of the published map, the columns of A too."""
    leaves, rank = flatten_dict(abstract(config, stacked=False), sep="/"), config.lora.rank
    out: dict[str, Entry] = {}

    def beside(entry: Entry, part: str) -> tuple[Target, ...]:
        paths = [
            (path.removesuffix("kernel") if path.endswith("/kernel") else f"{path}_", i) for path, i in entry.targets
        ]
        return tuple((path + part, i) for path, i in paths if path + part in leaves)

    for name, entry in entries.items():
        a, b = beside(entry, "lora_a"), beside(entry, "lora_b")
        if not LINEAR.search(name) or not b:
            continue
        (rows, columns), spare = entry.shape, leaves[a[0][0]].shape[-1] - entry.shape[1]
        stem = stem_of(name)
        count = len(a)
        out[f"{stem}.lora_A.weight"] = Entry(
            (count * rank, columns),
            a,
            lambda x, count=count, pad=((0, 0), (0, spare)): [np.pad(piece, pad) for piece in np.split(x, count)],
            lambda pieces, columns=columns: np.concatenate([piece[:, :columns] for piece in pieces]),
        )
        keep = entry.split, entry.join
        alone = (lambda x: [x]), (lambda pieces: pieces[0])
        out[f"{stem}.lora_B.weight"] = Entry((rows, rank), b, *(keep if name.endswith(_ROWS) else alone))
    return out


def _weights(config: LMConfig) -> dict[str, Entry]:
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
        entries[f"extra_heads.{i}.weight"] = plain((config.extra_heads_dim, dim), "extra_heads", i)
    for c in config.conditioners:
        name, path = f"condition_provider.conditioners.{c.name}", f"conditioners_{c.name}"
        if isinstance(c, LookupConditioner):
            entries[f"{name}.embed.weight"] = plain((c.bins + 1, c.dim), f"{path}/table")
        entries[f"{name}.output_proj.weight"] = plain((dim, c.dim), f"{path}/kernel")
        entries[f"{name}.learnt_padding"] = plain((1, 1, dim), f"{path}/absent", None, (dim,))
    # The published module makes one input projection even without a depth transformer.
    if depth is None:
        return entries
    inner = depth.transformer
    for s in range(len(set(depth.input_weights(dep_q)))):
        entries[f"depformer_in.{s}.weight"] = plain((inner.dim, dim), "depth/inputs/kernel", s)
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


def depth_weights(config: LMConfig) -> int:
    """Return how many attention weights every layer of the depth transformer has."""
    return len(set(config.depth.step_weights(config.layout.dep_q))) if config.depth is not None else 1

"""Names of the classes of Hugging Face Transformers for our tensors (`moshijax.weights.formats.huggingface_config`).

Rotary positions are half-split there, so the rows of queries and keys are permuted; the weights of the depth steps are
stacked; the Kyutai class has one table for all rows of the grid.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moshijax.codec import MimiConfig
from moshijax.errors import DataError
from moshijax.lm.config import LMConfig
from moshijax.nn.transformer import TransformerConfig
from moshijax.weights.formats.mimi_table import mimi_table
from moshijax.weights.names import Group, renamed, stacked

#: Files without it are refused by the library.
METADATA = {"format": "pt"}
#: Ends of names in a layer of the codec's transformers, ours and theirs.
_LAYER = {
    "linear1.weight": "mlp.fc1.weight",
    "linear2.weight": "mlp.fc2.weight",
    "norm1.weight": "input_layernorm.weight",
    "norm1.bias": "input_layernorm.bias",
    "norm2.weight": "post_attention_layernorm.weight",
    "norm2.bias": "post_attention_layernorm.bias",
    "layer_scale_1.scale": "self_attn_layer_scale.scale",
    "layer_scale_2.scale": "mlp_layer_scale.scale",
}
#: Parts of the other names of the codec, in the order in which they are replaced.
_PARTS = {
    "encoder.model.": "encoder.layers.",
    "decoder.model.": "decoder.layers.",
    # What stands between two frame rates has one more level of wrapping.
    "downsample.conv.conv.conv": "downsample.conv",
    "upsample.convtr.convtr.convtr": "upsample.conv",
    ".convtr.convtr": ".conv",
    ".conv.conv": ".conv",
    "quantizer.rvq_first.": "quantizer.semantic_residual_vector_quantizer.",
    "quantizer.rvq_rest.": "quantizer.acoustic_residual_vector_quantizer.",
    ".vq.layers.": ".layers.",
    "._codebook._initialized": ".codebook.initialized",
    "._codebook.embedding_sum": ".codebook.embed_sum",
    "._codebook.cluster_usage": ".codebook.cluster_usage",
}


def to_halves(rows: np.ndarray, heads: int) -> np.ndarray:
    """Reorder rows of queries or keys from interleaved to half-split rotary positions."""
    return rows.reshape(heads, -1, 2, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def to_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Invert `to_halves`."""
    return rows.reshape(heads, 2, -1, rows.shape[-1]).swapaxes(1, 2).reshape(rows.shape)


def _attention(theirs: str, ours: str, c: TransformerConfig, linear: str) -> Iterator[Group]:
    """`linear`: what their modules put between the projection and `weight`."""
    heads, groups, width = c.num_heads, c.num_heads // c.kv_repeat, c.dim // c.num_heads
    sizes = (heads * width, groups * width, groups * width)

    def read(arrays: list[np.ndarray]) -> list[np.ndarray]:
        q, k, v = arrays
        return [np.concatenate([to_pairs(q, heads), to_pairs(k, groups), v])]

    def write(arrays: list[np.ndarray]) -> list[np.ndarray]:
        q, k, v = np.split(arrays[0], np.cumsum(sizes)[:2])
        return [to_halves(q, heads), to_halves(k, groups), v]

    names = [f"{theirs}.{letter}_proj{linear}.weight" for letter in "qkv"]
    shapes = {name: (rows, c.dim) for name, rows in zip(names, sizes, strict=True)}
    yield Group(shapes, {f"{ours}.in_proj_weight": (sum(sizes), c.dim)}, read, write)
    yield renamed(f"{theirs}.o_proj{linear}.weight", f"{ours}.out_proj.weight", (c.dim, c.dim))


def mimi_groups(config: MimiConfig, prefix: str = "") -> list[Group]:
    """Return the names of Transformers for the tensors of a codec, with `prefix` before each."""
    shapes = {name: entry.shape for name, entry in mimi_table(config).items()}
    c = config.transformer
    groups: list[Group] = []
    for side in ("encoder", "decoder"):
        for i in range(c.num_layers):
            ours = f"{side}_transformer.transformer.layers.{i}"
            theirs = f"{prefix}{side}_transformer.layers.{i}"
            groups += _attention(f"{theirs}.self_attn", f"{ours}.self_attn", c, "")
            for mine, other in _LAYER.items():
                groups.append(renamed(f"{theirs}.{other}", f"{ours}.{mine}", shapes[f"{ours}.{mine}"]))
    for name, shape in shapes.items():
        if "_transformer." not in name:
            other = name
            for mine, theirs in _PARTS.items():
                other = other.replace(mine, theirs)
            groups.append(renamed(f"{prefix}{other}", name, shape))
    return groups


def lm_groups(config: LMConfig) -> list[Group]:
    """Return the names of Transformers for the tensors of a language model."""
    c, layout = config.temporal, config.layout
    recognition = config.depth is None
    model = "model" if recognition else "decoder.model"
    groups: list[Group] = []
    for i in range(c.num_layers):
        ours, theirs = f"transformer.layers.{i}", f"{model}.layers.{i}"
        groups += _attention(f"{theirs}.self_attn", f"{ours}.self_attn", c, ".linear")
        groups += [
            renamed(f"{theirs}.mlp.fc1.weight", f"{ours}.gating.linear_in.weight", (2 * c.hidden_dim, c.dim)),
            renamed(f"{theirs}.mlp.fc2.weight", f"{ours}.gating.linear_out.weight", (c.dim, c.hidden_dim)),
            renamed(f"{theirs}.input_layernorm.weight", f"{ours}.norm1.alpha", (1, 1, c.dim), (c.dim,)),
            renamed(f"{theirs}.post_attention_layernorm.weight", f"{ours}.norm2.alpha", (1, 1, c.dim), (c.dim,)),
        ]
    groups.append(renamed(f"{model}.norm.weight", "out_norm.alpha", (1, 1, c.dim), (c.dim,)))
    audio = [f"emb.{q}.weight" for q in range(layout.n_q)]
    text_rows, audio_rows = config.text_card + 1, config.card + 1
    if recognition:
        return [*groups, *_joint_tables(config, audio)]
    groups.append(renamed(f"{model}.embed_tokens.weight", "text_emb.weight", (text_rows, c.dim)))
    groups.append(renamed("decoder.lm_head.weight", "text_linear.weight", (config.text_card, c.dim)))
    groups += [renamed(f"embed_tokens.{q}.weight", name, (audio_rows, c.dim)) for q, name in enumerate(audio)]
    return [*groups, *_depth(config)]


def _joint_tables(config: LMConfig, audio: list[str]) -> Iterator[Group]:
    """Text, all codebooks and a row of zeros in one table; a row of zeros below the head too."""
    dim, text_rows, audio_rows = config.temporal.dim, config.text_card + 1, config.card + 1
    bounds = np.cumsum([text_rows, *[audio_rows] * len(audio)])
    table, head = "model.embed_tokens.embed_tokens.weight", "lm_head.weight"

    def without_zeros(array: np.ndarray, rows: int, name: str) -> np.ndarray:
        if np.any(array[rows:]):
            raise DataError(f"{name}: row {rows} must be zeros, it belongs to no token; fetch the file again")
        return array[:rows]

    def with_zeros(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros((1, dim), array.dtype)])

    yield Group(
        {table: (int(bounds[-1]) + 1, dim)},
        {"text_emb.weight": (text_rows, dim), **dict.fromkeys(audio, (audio_rows, dim))},
        lambda a: np.split(without_zeros(a[0], int(bounds[-1]), table), bounds[:-1]),
        lambda a: [with_zeros(np.concatenate(a))],
    )
    yield Group(
        {head: (text_rows, dim)},
        {"text_linear.weight": (text_rows - 1, dim)},
        lambda a: [without_zeros(a[0], text_rows - 1, head)],
        lambda a: [with_zeros(a[0])],
    )


def _depth(config: LMConfig) -> Iterator[Group]:
    """The depth decoder, its steps stacked; there are no positions, so no row is permuted."""
    c, steps, dim = config.depth.transformer, config.layout.dep_q, config.temporal.dim
    heads, groups, width = c.num_heads, c.num_heads // c.kv_repeat, c.dim // c.num_heads
    sizes = (heads * width, groups * width, groups * width)
    yield renamed("depth_decoder.text_embed_tokens.weight", "depformer_text_emb.weight", (config.text_card + 1, c.dim))
    for k in range(steps - 1):
        name = f"depformer_emb.{k}.weight"
        yield renamed(f"depth_decoder.embed_tokens.{k}.weight", name, (config.card + 1, c.dim))
    yield stacked(
        "depth_decoder.input_projections.weight", [f"depformer_in.{k}.weight" for k in range(steps)], (c.dim, dim)
    )
    yield stacked("depth_decoder.lm_heads.weight", [f"linears.{k}.weight" for k in range(steps)], (config.card, c.dim))

    def read(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return [np.concatenate([part[k] for k in range(steps) for part in arrays])]

    def write(arrays: list[np.ndarray]) -> list[np.ndarray]:
        return np.split(arrays[0].reshape(steps, sum(sizes), c.dim), np.cumsum(sizes)[:2], axis=1)

    for i in range(c.num_layers):
        ours, theirs = f"depformer.layers.{i}", f"depth_decoder.layers.{i}"
        names = [f"{theirs}.self_attn.{letter}_proj.linear.weight" for letter in "qkv"]
        yield Group(
            {name: (steps, rows, c.dim) for name, rows in zip(names, sizes, strict=True)},
            {f"{ours}.self_attn.in_proj_weight": (steps * sum(sizes), c.dim)},
            read,
            write,
        )
        out = f"{theirs}.self_attn.o_proj.linear.weight"
        yield renamed(out, f"{ours}.self_attn.out_proj.weight", (steps * c.dim, c.dim), (steps, c.dim, c.dim))
        for part, shape, other in (
            ("linear_in", (2 * c.hidden_dim, c.dim), "fc1"),
            ("linear_out", (c.dim, c.hidden_dim), "fc2"),
        ):
            mine = [f"{ours}.gating.{k}.{part}.weight" for k in range(steps)]
            yield stacked(f"{theirs}.mlp.{other}.weight", mine, shape)
        for mine, other in (("norm1", "input_layernorm"), ("norm2", "post_attention_layernorm")):
            yield renamed(f"{theirs}.{other}.weight", f"{ours}.{mine}.alpha", (1, 1, c.dim), (c.dim,))

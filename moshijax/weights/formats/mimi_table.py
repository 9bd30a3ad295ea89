"""Every tensor of a published codec and its place among our variables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from moshijax.codec import MimiConfig, functions, seanet
from moshijax.nn.conv import CausalConv, TransposedConv
from moshijax.nn.layout import pack_in_proj, unpack_in_proj
from moshijax.nn.streaming import Residual
from moshijax.nn.transformer import TransformerConfig
from moshijax.weights.table import Entry, plain


def _shape(layer: CausalConv | TransposedConv) -> tuple[int, ...]:
    """Published kernels are `[out, in, k]` or, transposed, `[in, out, k]`."""
    if isinstance(layer, CausalConv):
        return layer.features, layer.in_features, layer.kernel_size
    return layer.in_features, 1 if layer.depthwise else layer.features, layer.kernel_size


def _convolution(prefix: str, layer: CausalConv | TransposedConv, path: str) -> Iterator[tuple[str, Entry]]:
    """`prefix` without the trailing `weight`."""
    if isinstance(layer, CausalConv):
        axes = (2, 1, 0)
    elif layer.depthwise:
        axes = None
    else:
        axes = (0, 2, 1)

    def split(a: np.ndarray) -> list[np.ndarray]:
        return [a[:, 0].T if axes is None else a.transpose(axes)]

    def join(pieces: list[np.ndarray]) -> np.ndarray:
        return pieces[0].T[:, None] if axes is None else pieces[0].transpose(axes)

    yield f"{prefix}.weight", Entry(_shape(layer), ((f"{path}/kernel", None),), split, join)
    if layer.use_bias:
        yield f"{prefix}.bias", plain((layer.features,), f"{path}/bias")


def _transformer(config: TransformerConfig, prefix: str, path: str) -> Iterator[tuple[str, Entry]]:
    heads, repeat, dim, hidden = config.num_heads, config.kv_repeat, config.dim, config.hidden_dim
    rows = (heads + 2 * (heads // repeat)) * (dim // heads)
    for i in range(config.num_layers):
        here, there = f"{prefix}.layers.{i}", f"{path}/layers_{i}"
        yield (
            f"{here}.self_attn.in_proj_weight",
            Entry(
                (rows, dim),
                ((f"{there}/attention/in_proj/kernel", None),),
                lambda a: [pack_in_proj(a, heads, repeat)],
                lambda pieces: unpack_in_proj(pieces[0], heads, repeat),
            ),
        )
        yield f"{here}.self_attn.out_proj.weight", plain((dim, dim), f"{there}/attention/out_proj/kernel")
        yield f"{here}.linear1.weight", plain((hidden, dim), f"{there}/mlp/up/kernel")
        yield f"{here}.linear2.weight", plain((dim, hidden), f"{there}/mlp/down/kernel")
        for norm in ("norm1", "norm2"):
            yield f"{here}.{norm}.weight", plain((dim,), f"{there}/{norm}/scale")
            yield f"{here}.{norm}.bias", plain((dim,), f"{there}/{norm}/bias")
        if config.layer_scale is not None:
            for n in (1, 2):
                yield f"{here}.layer_scale_{n}.scale", plain((dim,), f"{there}/layer_scale_{n}/scale")


def _seanet(config: MimiConfig, side: str) -> Iterator[tuple[str, Entry]]:
    chain = {"encoder": seanet.encoder, "decoder": seanet.decoder}[side](config.seanet)
    for i, layer in enumerate(chain.parts):
        path = f"params/{side}/seanet/parts_{i}"
        if isinstance(layer, Residual):
            for j, inner in enumerate(layer.layer.parts):
                if isinstance(inner, CausalConv):
                    prefix = f"{side}.model.{i}.block.{j}.conv.conv"
                    yield from _convolution(prefix, inner, f"{path}/layer/parts_{j}")
        elif isinstance(layer, CausalConv | TransposedConv):
            kind = "conv.conv" if isinstance(layer, CausalConv) else "convtr.convtr"
            yield from _convolution(f"{side}.model.{i}.{kind}", layer, path)


def _quantizer(config: MimiConfig) -> Iterator[tuple[str, Entry]]:
    q, width = config.quantizer, config.seanet.dimension
    for name, part, levels in (
        ("rvq_first", "semantic", q.semantic),
        ("rvq_rest", "acoustic", q.num_codebooks - q.semantic),
    ):
        for projection, shape in (("input_proj", (q.dim, width)), ("output_proj", (width, q.dim))):
            path = f"params/quantizer/{part}/{projection}/kernel"
            yield f"quantizer.{name}.{projection}.weight", plain((*shape, 1), path, None, shape)
        for level in range(levels):
            prefix, path = f"quantizer.{name}.vq.layers.{level}._codebook", f"codebooks/quantizer/{part}"
            yield f"{prefix}.cluster_usage", plain((q.bins,), f"{path}/cluster_usage", level)
            yield f"{prefix}.embedding_sum", plain((q.bins, q.dim), f"{path}/embedding_sum", level)
            flag = plain((1,), f"{path}/initialized", level, ())
            yield f"{prefix}._initialized", Entry(flag.shape, flag.targets, lambda a: [a[0] > 0], flag.join)


def mimi_table(config: MimiConfig) -> dict[str, Entry]:
    """Return every published tensor of a codec, with its place in the variables."""
    table: dict[str, Entry] = {}
    for side in ("encoder", "decoder"):
        table |= _seanet(config, side)
        prefix = f"{side}_transformer.transformer"
        table |= _transformer(config.transformer, prefix, f"params/{side}/transformer")
    if config.resample_stride > 1:
        down = functions.Encoder(config).stages()["downsample"]
        up = functions.Decoder(config).stages()["upsample"]
        table |= _convolution("downsample.conv.conv.conv", down, "params/encoder/downsample")
        table |= _convolution("upsample.convtr.convtr.convtr", up, "params/decoder/upsample")
    return table | dict(_quantizer(config))

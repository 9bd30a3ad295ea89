"""Published Mimi weights: the PyTorch file format in.

A file holds the codec's tensors under the names of the PyTorch package (`_tensors` below is the whole correspondence);
fused and split attention names and the older codebook names are accepted. Checking is strict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np

from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig, functions, seanet, training
from moshijax.codec.configs import MIMI
from moshijax.errors import ConfigError, DataError
from moshijax.nn.conv import CausalConv, TransposedConv
from moshijax.nn.layout import pack_in_proj
from moshijax.nn.streaming import Residual
from moshijax.nn.transformer import TransformerConfig
from moshijax.weights.safetensors import TensorFile, check_names_and_shapes

MODEL_FILE = "model.safetensors"
#: Older or split names of the last part of a tensor's name -> the name used here.
ALIASES = {
    "_codebook.inited": "_codebook._initialized",
    "_codebook.cluster_size": "_codebook.cluster_usage",
    "_codebook.embed_avg": "_codebook.embedding_sum",
    "_codebook.embed_sum": "_codebook.embedding_sum",
    "self_attn.in_projs.0.weight": "self_attn.in_proj_weight",
    "self_attn.in_proj.weight": "self_attn.in_proj_weight",
    "self_attn.out_projs.0.weight": "self_attn.out_proj.weight",
}


def load_mimi(path: str | Path, config: MimiConfig | None = None) -> tuple[MimiConfig, dict[str, Any]]:
    """A codec from published weights or from a run.

    Args:
        path: a safetensors file; a directory with ``model.safetensors`` and a codec's ``config.json``, or with a
            published ``config.json`` that names its codec file (``mimi_name``); or a run directory of a codec.
        config: of the codec in a lone file; default is the published Mimi.

    Returns:
        ``(config, params)``; ``params`` holds float32 numpy arrays in the training layout
        (`moshijax.codec.inference_layout` makes it fast).

    Raises:
        DataError: the file is incomplete or not of this codec; missing, unexpected and mis-shaped tensors are listed
            together.
        ConfigError: the config asks for what this codec does not do.
    """
    path = Path(path)
    if path.is_dir():
        if (path / "model.json").exists():
            from moshijax.train.checkpoint import load_run

            kind, config, params, _ = load_run(path)
            if kind != "codec":
                raise DataError(f"{path} is the run of a {kind!r} model, a codec is needed; name a codec run")
            return config, training.without_teacher(params)
        path, config = _find_in_directory(path, config)
    return _read(path, config or MIMI)


def _find_in_directory(directory: Path, config: MimiConfig | None) -> tuple[Path, MimiConfig | None]:
    file = directory / "config.json"
    if not file.exists():
        return directory / MODEL_FILE, config
    try:
        fields = json.loads(file.read_text())
    except ValueError as error:
        raise DataError(f"{file} is not JSON ({error}); fetch it again") from None
    if "mimi_name" in fields:
        return directory / fields["mimi_name"], config
    return directory / MODEL_FILE, config or config_from_json(fields, str(file))


# Fields of the published config: those that must have one value here, and those that say nothing.
_FIXED = {
    "": {"channels": 1},
    "seanet": {
        "channels": 1,
        "causal": True,
        "activation": "ELU",
        "disable_norm_outer_blocks": 0,
        "norm": "none",
        "pad_mode": "constant",
        "true_skip": True,
    },
    "transformer": {"causal": True, "conv_layout": True, "gating": "none", "norm": "layer_norm"},
    "quantizer": {},
}
_FIXED["transformer"]["positional_embedding"] = "rope"


def config_from_json(fields: dict[str, Any], source: str = "config.json") -> MimiConfig:
    """The config of a codec from its published JSON form (``seanet``, ``transformer``, ``quantizer`` tables).

    Raises:
        ConfigError: a table or field is missing, or has a value that this codec does not do.
    """
    try:
        s, t, q = dict(fields["seanet"]), dict(fields["transformer"]), dict(fields["quantizer"])
        for table, values in (("", fields), ("seanet", s), ("transformer", t), ("quantizer", q)):
            for name, only in _FIXED[table].items():
                if values.get(name, only) != only:
                    raise ConfigError(
                        f"{source}: {table} {name} is {values[name]!r}, only {only!r} is supported; "
                        f"use another checkpoint"
                    )
        names = (
            "n_filters",
            "kernel_size",
            "residual_kernel_size",
            "last_kernel_size",
            "n_residual_layers",
            "compress",
        )
        config = MimiConfig(
            sample_rate=fields["sample_rate"],
            frame_rate=fields["frame_rate"],
            seanet=SeanetConfig(
                dimension=s["dimension"],
                ratios=tuple(s["ratios"]),
                dilation_base=s["dilation_base"],
                **{name: s[name] for name in names},
            ),
            transformer=TransformerConfig(
                dim=t["d_model"],
                num_layers=t["num_layers"],
                num_heads=t["num_heads"],
                hidden_dim=t["dim_feedforward"],
                context=t["context"],
                max_period=float(t["max_period"]),
                layer_scale=t.get("layer_scale"),
            ),
            quantizer=QuantizerConfig(dim=q["dimension"], bins=q["bins"], num_codebooks=q["n_q"]),
        )
        widths = (t["input_dimension"], *t["output_dimensions"], q["input_dimension"], q["output_dimension"])
    except KeyError as error:
        raise ConfigError(f"{source}: field {error} is missing; a codec's config needs it") from None
    if set(widths) != {config.seanet.dimension}:
        raise ConfigError(f"{source}: widths {widths} must all equal seanet dimension {config.seanet.dimension}")
    return config


class _Tensor(NamedTuple):
    name: str  # published
    target: tuple[str, ...]  # where it goes; codebook levels carry their index as last part
    convert: Callable[[np.ndarray], np.ndarray]
    restore: Callable[[tuple[int, ...]], tuple[int, ...]]  # our shape -> published shape


def _same(x):
    return x


def _convolution(prefix: str, layer: CausalConv | TransposedConv, target: tuple[str, ...]) -> Iterator[_Tensor]:
    """``prefix`` without the trailing ``weight``; kernels ``[out, in, k]`` or, transposed, ``[in, out, k]``."""
    if isinstance(layer, CausalConv):
        yield _Tensor(f"{prefix}.weight", (*target, "kernel"), lambda w: w.transpose(2, 1, 0), lambda s: s[::-1])
    elif layer.depthwise:
        yield _Tensor(f"{prefix}.weight", (*target, "kernel"), lambda w: w[:, 0].T, lambda s: (s[1], 1, s[0]))
    else:
        yield _Tensor(
            f"{prefix}.weight", (*target, "kernel"), lambda w: w.transpose(0, 2, 1), lambda s: (s[0], s[2], s[1])
        )
    if layer.use_bias:
        yield _Tensor(f"{prefix}.bias", (*target, "bias"), _same, _same)


def _tensors(config: MimiConfig) -> Iterator[_Tensor]:
    """Every tensor of a published file and where it belongs."""
    for side, chain in (("encoder", seanet.encoder(config.seanet)), ("decoder", seanet.decoder(config.seanet))):
        for i, layer in enumerate(chain.parts):
            place = ("params", side, "seanet", f"parts_{i}")
            if isinstance(layer, Residual):
                for j, inner in enumerate(layer.layer.parts):
                    if isinstance(inner, CausalConv):
                        prefix = f"{side}.model.{i}.block.{j}.conv.conv"
                        yield from _convolution(prefix, inner, (*place, "layer", f"parts_{j}"))
            elif isinstance(layer, CausalConv | TransposedConv):
                kind = "conv.conv" if isinstance(layer, CausalConv) else "convtr.convtr"
                yield from _convolution(f"{side}.model.{i}.{kind}", layer, place)
        yield from _transformer(config.transformer, f"{side}_transformer.transformer", ("params", side, "transformer"))
    if config.resample_stride > 1:
        down = functions.Encoder(config).stages()["downsample"]
        up = functions.Decoder(config).stages()["upsample"]
        yield from _convolution("downsample.conv.conv.conv", down, ("params", "encoder", "downsample"))
        yield from _convolution("upsample.convtr.convtr.convtr", up, ("params", "decoder", "upsample"))
    semantic = config.quantizer.semantic
    for name, part, levels in (
        ("rvq_first", "semantic", semantic),
        ("rvq_rest", "acoustic", config.num_codebooks - semantic),
    ):
        for proj in ("input_proj", "output_proj"):
            target = ("params", "quantizer", part, proj, "kernel")
            yield _Tensor(f"quantizer.{name}.{proj}.weight", target, lambda w: w[..., 0], lambda s: (*s, 1))
        for q in range(levels):
            for buffer in ("cluster_usage", "embedding_sum"):
                target = ("codebooks", "quantizer", part, buffer, str(q))
                yield _Tensor(f"quantizer.{name}.vq.layers.{q}._codebook.{buffer}", target, _same, lambda s: s[1:])
            yield _Tensor(
                f"quantizer.{name}.vq.layers.{q}._codebook._initialized",
                ("codebooks", "quantizer", part, "initialized", str(q)),
                lambda w: w[0] > 0,
                lambda s: (1,),
            )


def _transformer(config: TransformerConfig, prefix: str, target: tuple[str, ...]) -> Iterator[_Tensor]:
    def pack(w):
        return pack_in_proj(w, config.num_heads, config.kv_repeat)

    for i in range(config.num_layers):
        published, place = f"{prefix}.layers.{i}", (*target, f"layers_{i}")
        yield _Tensor(f"{published}.self_attn.in_proj_weight", (*place, "attention", "in_proj", "kernel"), pack, _same)
        yield _Tensor(
            f"{published}.self_attn.out_proj.weight", (*place, "attention", "out_proj", "kernel"), _same, _same
        )
        yield _Tensor(f"{published}.linear1.weight", (*place, "mlp", "up", "kernel"), _same, _same)
        yield _Tensor(f"{published}.linear2.weight", (*place, "mlp", "down", "kernel"), _same, _same)
        for norm in ("norm1", "norm2"):
            yield _Tensor(f"{published}.{norm}.weight", (*place, norm, "scale"), _same, _same)
            yield _Tensor(f"{published}.{norm}.bias", (*place, norm, "bias"), _same, _same)
        if config.layer_scale is not None:
            for n in (1, 2):
                yield _Tensor(f"{published}.layer_scale_{n}.scale", (*place, f"layer_scale_{n}", "scale"), _same, _same)


def _canonical(name: str) -> str:
    for old, new in ALIASES.items():
        if name.endswith(old):
            return name[: -len(old)] + new
    return name


def _read(path: Path, config: MimiConfig) -> tuple[MimiConfig, dict[str, Any]]:
    file = TensorFile(path)
    in_file = {_canonical(name): name for name in file}
    abstract = jax.eval_shape(lambda key: nn.meta.unbox(functions.init(config, key)), jax.random.key(0))
    tensors = list(_tensors(config))

    def at(tree, target):
        for part in target:
            if not isinstance(tree, dict):
                return tree
            tree = tree[part]
        return tree

    expected = {t.name: t.restore(at(abstract, t.target).shape) for t in tensors}
    check_names_and_shapes(path, {name: file.shapes[old] for name, old in in_file.items()}, expected)

    out: dict[str, Any] = {}
    for tensor in tensors:
        value = tensor.convert(np.asarray(file[in_file[tensor.name]], np.float32))
        *branch, leaf = tensor.target
        tree = out
        for part in branch:
            tree = tree.setdefault(part, {})
        tree[leaf] = np.array(value, order="C")
    for book in out["codebooks"]["quantizer"].values():
        for buffer, levels in book.items():
            book[buffer] = np.stack([levels[str(q)] for q in range(len(levels))])
    return config, out

"""Files of fairseq's CodeHiFiGAN: config, names, and weight norm in all of its three forms, which reading folds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from moshijax.annotations import Size, shown
from moshijax.errors import ConfigError, DataError
from moshijax.omni.vocoder import VocoderConfig
from moshijax.weights.formats.fields import checked
from moshijax.weights.formats.whisper import conv
from moshijax.weights.names import Group, renamed

_HINTS: dict[str, Any] = {
    **dict.fromkeys(("num_embeddings", "embedding_dim", "model_in_dim", "upsample_initial_channel"), Size),
    **dict.fromkeys(("upsample_rates", "upsample_kernel_sizes", "resblock_kernel_sizes"), tuple[Size, ...]),
    **{"resblock_dilation_sizes": tuple[tuple[Size, ...], ...], "sampling_rate": Size, "code_hop_size": Size},
    "dur_predictor_params": dict,
}
#: Names of what a normed weight is stored as; the first is the older one of PyTorch, "" is a weight that was folded.
FORMS = {
    "weight_norm": ("weight_g", "weight_v"),
    "parametrizations": ("parametrizations.weight.original0", "parametrizations.weight.original1"),
    "folded": ("weight",),
}
#: Tables of vocoders that read pitch, speakers or emotions beside units.
_OTHERS = ("f0", "multispkr", "multi_speaker", "f0_quantizer", "multilingual")


def vocoder_config(fields: Mapping[str, Any]) -> VocoderConfig:
    """Return the vocoder that its config.json describes.

    Raises:
      ConfigError: a field is missing or not usable, or the vocoder reads more than units.
    """
    missing = [name for name in _HINTS if name not in fields]
    if missing:
        raise ConfigError(f"config.json of the vocoder lacks {', '.join(missing)}; fetch it again")
    for name in _OTHERS:
        if fields.get(name):
            raise ConfigError(f"config.json of the vocoder has {name}={shown(fields[name])}: only units are read")
    f = checked(fields, _HINTS, "config.json")
    predictor = checked(
        f["dur_predictor_params"],
        dict.fromkeys(("encoder_embed_dim", "var_pred_hidden_dim", "var_pred_kernel_size"), Size),
        "config.json: dur_predictor_params",
    )
    dim = f["embedding_dim"]
    config = VocoderConfig(
        units=f["num_embeddings"],
        dim=dim,
        channels=f["upsample_initial_channel"],
        rates=f["upsample_rates"],
        kernels=f["upsample_kernel_sizes"],
        residual_kernels=f["resblock_kernel_sizes"],
        dilations=f["resblock_dilation_sizes"],
        duration_kernel=predictor.get("var_pred_kernel_size", 3),
        sample_rate=f["sampling_rate"],
    )
    for name, value, allowed in (
        ("resblock", str(fields.get("resblock", "1")), "1"),
        ("model_in_dim", f["model_in_dim"], dim),
        ("encoder_embed_dim", predictor.get("encoder_embed_dim"), dim),
        ("var_pred_hidden_dim", predictor.get("var_pred_hidden_dim"), dim),
        ("code_hop_size", f["code_hop_size"], config.hop),
    ):
        if value != allowed:
            raise ConfigError(f"config.json of the vocoder has {name}={shown(value)}: must be {allowed}")
    return config


def published_vocoder_config(config: VocoderConfig) -> dict[str, Any]:
    """Return the config.json of a vocoder: the inverse of `vocoder_config`."""
    return {
        "resblock": "1",
        "num_embeddings": config.units,
        "embedding_dim": config.dim,
        "model_in_dim": config.dim,
        "upsample_rates": list(config.rates),
        "upsample_kernel_sizes": list(config.kernels),
        "upsample_initial_channel": config.channels,
        "resblock_kernel_sizes": list(config.residual_kernels),
        "resblock_dilation_sizes": [list(block) for block in config.dilations],
        "dur_predictor_params": {
            "encoder_embed_dim": config.dim,
            "var_pred_hidden_dim": config.dim,
            "var_pred_kernel_size": config.duration_kernel,
            "var_pred_dropout": 0.5,
        },
        "sampling_rate": config.sample_rate,
        "code_hop_size": config.hop,
    }


def form_of(names: Mapping[str, Any], where: str) -> str:
    """Return in which of `FORMS` the weights of a file are.

    Raises:
      DataError: in none of them.
    """
    for form, parts in FORMS.items():
        if f"conv_pre.{parts[-1]}" in names:
            return form
    raise DataError(f"{where} has no conv_pre: it is no CodeHiFiGAN; take the tensors under `generator`")


def _normed(stem: str, form: str, ours: str, shape: tuple[int, int, int], order: tuple[int, int, int]) -> Group:
    """A kernel of a shape there, in our order of axes; the norm is over all axes but the first."""
    names = [f"{stem}.{part}" for part in FORMS[form]]
    mine = {ours: tuple(shape[axis] for axis in order)}
    back = tuple(np.argsort(order))
    if form == "folded":
        return Group({names[0]: shape}, mine, lambda a: [a[0].transpose(order)], lambda a: [a[0].transpose(back)])

    def read(arrays: list[np.ndarray]) -> list[np.ndarray]:
        g, v = (array.astype(np.float64) for array in arrays)
        norm = np.sqrt(np.sum(np.square(v), axis=(1, 2), keepdims=True))
        if not norm.all():
            raise DataError(f"{names[1]} has a row of zeros, which has no direction; fetch the file again")
        return [(g * v / norm).astype(arrays[1].dtype).transpose(order)]

    def write(arrays: list[np.ndarray]) -> list[np.ndarray]:
        v = arrays[0].transpose(back)
        norm = np.sqrt(np.sum(np.square(v.astype(np.float64)), axis=(1, 2), keepdims=True))
        return [norm.astype(v.dtype), v]

    return Group({names[0]: (shape[0], 1, 1), names[1]: shape}, mine, read, write)


def vocoder_groups(config: VocoderConfig, form: str = "weight_norm") -> list[Group]:
    """Return the published names of a vocoder, its weights in one of `FORMS`."""
    return [*_predictor(config), *_generator(config, form)]


def _predictor(c: VocoderConfig) -> Iterator[Group]:
    yield renamed("dict.weight", "table", (c.units, c.dim))
    for i in (1, 2):
        theirs, ours = f"dur_predictor.conv{i}.0", f"durations/conv{i}"
        yield conv(f"{theirs}.weight", f"{ours}/kernel", c.duration_kernel, c.dim, c.dim)
        yield renamed(f"{theirs}.bias", f"{ours}/bias", (c.dim,))
        yield renamed(f"dur_predictor.ln{i}.weight", f"durations/norm{i}/scale", (c.dim,))
        yield renamed(f"dur_predictor.ln{i}.bias", f"durations/norm{i}/bias", (c.dim,))
    yield renamed("dur_predictor.proj.weight", "durations/proj/kernel", (1, c.dim))
    yield renamed("dur_predictor.proj.bias", "durations/proj/bias", (1,))


def _generator(c: VocoderConfig, form: str) -> Iterator[Group]:
    def centred(theirs: str, ours: str, width: int, features: int, taps: int) -> Iterator[Group]:
        yield _normed(theirs, form, f"{ours}/kernel", (features, width, taps), (2, 1, 0))
        yield renamed(f"{theirs}.bias", f"{ours}/bias", (features,))

    channels = [c.channels >> i for i in range(len(c.rates) + 1)]
    yield from centred("conv_pre", "conv_pre", c.dim, channels[0], 7)
    yield from centred("conv_post", "conv_post", channels[-1], 1, 7)
    for i, taps in enumerate(c.kernels):
        # The first axis is that of the inputs in a transposed convolution.
        yield _normed(f"ups.{i}", form, f"ups_{i}/kernel", (channels[i], channels[i + 1], taps), (0, 2, 1))
        yield renamed(f"ups.{i}.bias", f"ups_{i}/bias", (channels[i + 1],))
        for j, (kernel, dilations) in enumerate(zip(c.residual_kernels, c.dilations, strict=True)):
            n = i * len(c.residual_kernels) + j
            for number, kind in ((1, "dilated"), (2, "plain")):
                for layer in range(len(dilations)):
                    theirs, ours = f"resblocks.{n}.convs{number}.{layer}", f"blocks_{n}/{kind}_{layer}"
                    yield from centred(theirs, ours, channels[i + 1], channels[i + 1], kernel)

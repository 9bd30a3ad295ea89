"""The weights of an artifact: how they are stored, and the types in which programs take them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from moshijax.errors import ConfigError, DataError
from moshijax.export.step import flatten
from moshijax.nn.layout import unstack_layers
from moshijax.nn.quantised import Quantised, dequantise_kernels, quantise_kernels

#: How a language model, or a LLaMA-Omni, is stored. int8: kernels of linear maps as integers with a float32 scale per
#: output, all else in bfloat16.
WEIGHT_DTYPES = ("float32", "bfloat16", "int8")


def other_dtype(weights_dtype: str) -> str:
    """Return the type of what is never quantised: tables, norms, biases."""
    return "bfloat16" if weights_dtype == "int8" else weights_dtype


def compute_dtype(platform: str, weights_dtype: str) -> str:
    """Return the type in which a model computes; products of other types are slow on a CPU."""
    return "float32" if platform == "cpu" else other_dtype(weights_dtype)


def program_dtype(platform: str, stored: str) -> str:
    """Return the type in which programs take weights of a stored type."""
    return "float32" if platform == "cpu" and stored in WEIGHT_DTYPES else stored


def inference_layout(params: Mapping[str, Any], weights_dtype: str) -> dict[str, Any]:
    """Return a model in either layout as a step takes it: one array per layer and step, kernels quantised.

    Conditions are computed once in a call, in float32, so their maps stay as they are; and so do convolutions.
    """
    params = unstack_layers(nn.meta.unbox(params))
    if weights_dtype != "int8":
        return dequantise_kernels(params)
    return quantise_kernels(params, kept=("conditioners_", "conv"))


def specs(
    name: str, abstract: Callable[..., Mapping[str, Any]], config: Any, weights_dtype: str
) -> dict[str, jax.ShapeDtypeStruct]:
    """Return the shapes and types of a stored model, by flat name; arguments as in `stored`."""
    dtype = other_dtype(weights_dtype)
    layout = partial(inference_layout, weights_dtype=weights_dtype)
    return flatten(jax.eval_shape(layout, abstract(config.with_dtype(dtype, dtype), stacked=False)), name)


def stored(
    name: str,
    abstract: Callable[..., Mapping[str, Any]],
    config: Any,
    params: Mapping[str, Any],
    weights_dtype: str,
) -> dict[str, np.ndarray]:
    """Return a model as it is stored, by flat name.

    Args:
      name: what flat names begin with.
      abstract: that of the family, `lm.abstract` or `omni.config.abstract`.
      config: of the model, with any types.
      params: in either layout.
      weights_dtype: one of `WEIGHT_DTYPES`.

    Raises:
      ConfigError: the parameters are not those of the config.
      DataError: a kernel that is to be quantised has values that are not finite.
    """
    found, expected = (
        flatten(inference_layout(params, weights_dtype), name),
        specs(name, abstract, config, weights_dtype),
    )
    wrong = [
        name
        for name in {**expected, **found}
        if getattr(found.get(name), "shape", 0) != getattr(expected.get(name), "shape", 1)
    ]
    if wrong:
        raise ConfigError(f"parameters do not fit the model's config: {', '.join(wrong[:5])}; check both")
    for name, value in found.items():
        if name.endswith(("/kernel/scale", "/head/scale")) and not np.isfinite(value).all():
            raise DataError(f"{name.removesuffix('/scale')} has values that are not finite; int8 cannot hold them")
    return {name: np.asarray(found[name]).astype(spec.dtype) for name, spec in expected.items()}


def dtype_of(kernel: Any) -> str:
    """Return how a model was stored, from the kernel of one of its linear maps."""
    return "int8" if isinstance(kernel, Quantised) else str(kernel.dtype)

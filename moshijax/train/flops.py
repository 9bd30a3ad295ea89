"""Arithmetic of a computation, counted from its jaxpr; and the peak rate of a device."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

# Dense bfloat16 peak per chip in FLOP/s, by a part of the lower-case device kind; first match wins.
PEAK_FLOPS = (
    ("h200", 989e12),
    ("h100", 989e12),
    ("a100", 312e12),
    ("l40", 181e12),
    ("l4", 121e12),
    ("v6e", 918e12),
    ("v6 lite", 918e12),
    ("v5p", 459e12),
    ("v5e", 197e12),
    ("v5 lite", 197e12),
    ("v4", 275e12),
)


def count_flops(function: Any, *arguments: Any) -> float:
    """FLOPs of every contraction and convolution that `function(*arguments)` runs: 2 per multiply-add.

    Arguments may be abstract. The body of a scan counts once per iteration, the body of a while loop once, and of
    branches the dearest one.
    """
    return _count(jax.make_jaxpr(function)(*arguments).jaxpr)


def _count(jaxpr: Any) -> float:
    total = 0.0
    for eqn in jaxpr.eqns:
        name = eqn.primitive.name
        if name == "dot_general":
            total += _dot_general(eqn)
        elif name == "conv_general_dilated":
            total += _convolution(eqn)
        else:
            inner = [_count(sub) for value in eqn.params.values() for sub in _jaxprs(value)]
            if name == "cond":
                total += max(inner, default=0.0)
            else:
                total += sum(inner) * (eqn.params["length"] if name == "scan" else 1)
    return total


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "eqns"):
        return [value]
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if isinstance(value, tuple | list):
        return [sub for item in value for sub in _jaxprs(item)]
    return []


def _dot_general(eqn: Any) -> float:
    (contracted, _), _ = eqn.params["dimension_numbers"]
    left = eqn.invars[0].aval.shape
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)


def _convolution(eqn: Any) -> float:
    numbers = eqn.params["dimension_numbers"]
    kernel = eqn.invars[1].aval.shape
    per_output = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
    return 2.0 * math.prod(eqn.outvars[0].aval.shape) * per_output / eqn.params["batch_group_count"]


def peak_flops(devices: Sequence[jax.Device]) -> float:
    """Peak FLOP/s of some devices together: from the table, NaN for an unknown kind. For CPU devices, which share one
    machine, the rate of a float32 matrix product, measured now."""
    device = devices[0]
    if device.platform != "cpu":
        kind = device.device_kind.lower()
        return len(devices) * next((peak for part, peak in PEAK_FLOPS if part in kind), math.nan)
    size = 1024
    matrix = jax.device_put(jnp.ones((size, size), jnp.float32), device)
    product = jax.jit(lambda a: a @ a)
    product(matrix).block_until_ready()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        product(matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best

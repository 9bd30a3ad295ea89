"""Arithmetic of a computation and of its gradient, counted from its jaxpr; and the peak rate of devices."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.compiled import chips

OTHER = "other"


def training_flops(loss: Any, params: Any, *arguments: Any, parts: Sequence[str] = ()) -> dict[str, float]:
    """Count the FLOPs of `loss(params, *arguments)` [] and of its gradient with respect to `params`.

    They are found on the forward pass: 2 per multiply-add of every contraction and convolution. The body of a scan
    counts once per iteration, the body of a while loop once, and of branches the most expensive one.

    A contraction counts once forward and once more for each of its operands that the gradient needs, so what is frozen,
    or lies before the first thing that is trained, costs its forward pass alone. Nothing counts twice because it is
    computed again in the backward pass.

    Args:
      loss: the function.
      params: what is trained; shapes are enough.
      *arguments: other arguments of `loss`; shapes are enough.
      parts: names of modules; a contraction belongs to the first one in its name scope.

    Returns:
      Part -> FLOPs, with "other" for what is in none; only those above 0.
    """
    jaxpr = jax.make_jaxpr(loss)(params, *arguments).jaxpr
    trained = len(jax.tree.leaves(params))
    count = _Count(tuple(parts))
    count.walk(jaxpr, [i < trained for i in range(len(jaxpr.invars))], [True])
    return {part: flops for part, flops in count.found.items() if flops}


# Which values depend on the parameters ("active") is found forwards, which of these the loss depends on ("needed")
# backwards; a gradient is computed where both hold. Flags go with the variables of a jaxpr, in their order.


class _Count:
    """FLOPs by part, added up over a jaxpr and those inside it."""

    def __init__(self, parts: tuple[str, ...]) -> None:
        self.parts = parts
        self.found: dict[str, float] = {}

    def walk(
        self, jaxpr: Any, active: list[bool], needed: list[bool], times: float = 1.0, scope: str = ""
    ) -> list[bool]:
        """Count a jaxpr, given which inputs are active and which outputs needed; return which inputs are needed."""
        known = _activity(jaxpr, active)
        wanted = {var for var, flag in zip(jaxpr.outvars, needed, strict=True) if flag and _is_var(var)}
        for eqn in reversed(jaxpr.eqns):
            ins = [known.get(var, False) if _is_var(var) else False for var in eqn.invars]
            outs = [known.get(var, False) and var in wanted for var in eqn.outvars]
            where = f"{scope}/{eqn.source_info.name_stack}"
            found = self._equation(eqn, ins, outs, times, where)
            wanted |= {var for var, flag in zip(eqn.invars, found, strict=True) if flag and _is_var(var)}
        return [var in wanted for var in jaxpr.invars]

    def _equation(self, eqn: Any, ins: list[bool], outs: list[bool], times: float, scope: str) -> list[bool]:
        name = eqn.primitive.name
        if name in ("dot_general", "conv_general_dilated"):
            flops = _dot_general(eqn) if name == "dot_general" else _convolution(eqn)
            self._add(scope, times * flops * (1 + (sum(ins) if any(outs) else 0)))
        elif name == "scan":
            return self._scan(eqn, ins, outs, times, scope)
        elif name == "cond":
            counts = [_Count(self.parts) for _ in eqn.params["branches"]]
            flags = [
                count.walk(branch, ins[1:], outs, times, scope)
                for count, branch in zip(counts, _jaxprs(eqn.params["branches"]), strict=True)
            ]
            dearest = max(counts, key=lambda count: sum(count.found.values()))
            for part, flops in dearest.found.items():
                self.found[part] = self.found.get(part, 0.0) + flops
            return [False, *(any(column) for column in zip(*flags, strict=True))]
        else:
            inner = _inner(eqn)
            if inner is not None:
                return self.walk(inner, ins, outs, times, scope)
            for sub in (sub for value in eqn.params.values() for sub in _jaxprs(value)):
                self.walk(sub, [False] * len(sub.invars), [False] * len(sub.outvars), times, scope)
        return [flag and any(outs) for flag in ins]

    def _scan(self, eqn: Any, ins: list[bool], outs: list[bool], times: float, scope: str) -> list[bool]:
        body, consts, carries = _scan_parts(eqn)
        ins = _scan_activity(eqn, ins)
        while True:  # what the next iteration needs of the carry, this one has to give
            needed = _Count(()).walk(body, ins, outs)
            carried = [a or b for a, b in zip(outs[:carries], needed[consts : consts + carries], strict=True)]
            if carried == outs[:carries]:
                break
            outs = carried + outs[carries:]
        return self.walk(body, ins, outs, times * eqn.params["length"], scope)

    def _add(self, scope: str, flops: float) -> None:
        names = (piece.split(".")[0] for piece in scope.replace("(", "/").replace(")", "/").split("/"))
        part = next((name for name in names if name in self.parts), OTHER)
        self.found[part] = self.found.get(part, 0.0) + flops


def _is_var(var: Any) -> bool:
    return not hasattr(var, "val")  # a literal has a value


def _activity(jaxpr: Any, active: list[bool]) -> dict[Any, bool]:
    """Return variable of a jaxpr -> whether it depends, differentiably, on an active input."""
    known = dict(zip(jaxpr.invars, active, strict=True))
    for eqn in jaxpr.eqns:
        ins = [known.get(var, False) if _is_var(var) else False for var in eqn.invars]
        if not any(ins) or eqn.primitive.name in ("stop_gradient", "while"):
            outs = [False] * len(eqn.outvars)
        elif eqn.primitive.name == "scan":
            outs = _outputs(_scan_parts(eqn)[0], _scan_activity(eqn, ins))
        elif eqn.primitive.name == "cond":
            found = [_outputs(branch, ins[1:]) for branch in _jaxprs(eqn.params["branches"])]
            outs = [any(column) for column in zip(*found, strict=True)]
        else:
            inner = _inner(eqn)
            outs = [True] * len(eqn.outvars) if inner is None else _outputs(inner, ins)
        for var, flag in zip(eqn.outvars, outs, strict=True):
            known[var] = flag and jnp.issubdtype(var.aval.dtype, jnp.inexact)
    return known


def _outputs(jaxpr: Any, active: list[bool]) -> list[bool]:
    known = _activity(jaxpr, active)
    return [known.get(var, False) if _is_var(var) else False for var in jaxpr.outvars]


def _scan_parts(eqn: Any) -> tuple[Any, int, int]:
    """Return the body of a scan, and how many of its inputs are constants and how many are carried.

    Read from the shapes, because versions of jax write it down in different ways: what is scanned, in or out, has one
    axis less inside the body.
    """
    (body,) = _jaxprs(eqn.params["jaxpr"])

    def scanned(outside: Sequence[Any], inside: Sequence[Any]) -> int:
        return sum(a.aval.ndim > b.aval.ndim for a, b in zip(outside, inside, strict=True))

    carries = len(body.outvars) - scanned(eqn.outvars, body.outvars)
    return body, len(body.invars) - carries - scanned(eqn.invars, body.invars), carries


def _scan_activity(eqn: Any, ins: list[bool]) -> list[bool]:
    """Return the activity of the inputs of a scan's body: what becomes active in an iteration is so in the next."""
    body, consts, carries = _scan_parts(eqn)
    while True:
        outs = _outputs(body, ins)
        carried = [a or b for a, b in zip(ins[consts : consts + carries], outs[:carries], strict=True)]
        if carried == ins[consts : consts + carries]:
            return ins
        ins = ins[:consts] + carried + ins[consts + carries :]


def _inner(eqn: Any) -> Any:
    """Return the jaxpr that an equation calls with its own inputs (jit, remat, custom derivatives), or None."""
    found = [sub for value in eqn.params.values() for sub in _jaxprs(value)]
    fits = [sub for sub in found if len(sub.invars) == len(eqn.invars) and len(sub.outvars) == len(eqn.outvars)]
    return fits[0] if len(found) == 1 and fits else None


def _jaxprs(value: Any) -> list[Any]:
    if hasattr(value, "jaxpr"):
        return [value.jaxpr]
    if hasattr(value, "eqns"):
        return [value]
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
    """Return the peak FLOP/s of some devices together: from the table, NaN for an unknown kind.

    For CPU devices, which share one machine, it is the rate of a float32 matrix product, measured now.
    """
    device = devices[0]
    if device.platform != "cpu":
        chip = chips.find(device.device_kind)
        return len(devices) * (math.nan if chip is None else chip.flops)
    size = 1024
    matrix = jax.device_put(np.ones((size, size), np.float32), device)

    @jax.jit
    def matrix_product(a: jax.Array) -> jax.Array:
        return a @ a

    matrix_product(matrix).block_until_ready()
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        matrix_product(matrix).block_until_ready()
        best = min(best, time.perf_counter() - start)
    return 2.0 * size**3 / best

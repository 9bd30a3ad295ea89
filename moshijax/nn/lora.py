"""Low-rank updates of linear maps, `y = W x + scaling B (A x)`, beside weights that may stay as they are.

LoRA (arXiv 2106.09685; `modules/lora.py` of `moshi`). The modules of a model know nothing of it. Inside `updates`, a
map that a `LoRA` names gets a pair of parameters when its module is set up, and adds their product when it is used:
`lora_a [rank, in]` and `lora_b [out, rank]`, beside the kernel and split over devices as its columns and rows are.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from moshijax.annotations import Factor, Size
from moshijax.errors import ConfigError, require
from moshijax.nn.projection import Kernels, Linear, StackedLinear, uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: Maps that have no update in published adapters: of the embeddings of a frame, and of cross-attention.
WITHOUT = re.compile(r"^(audio|text)_embedding/|/cross_attention/")
_NUMBERS = re.compile(r"/(layers|steps)(_\d+)?(?=/|$)")
_ACTIVE: ContextVar[LoRA | None] = ContextVar("low-rank updates", default=None)


@dataclass(frozen=True)
class LoRA:
    """Which linear maps have an update, and of what kind.

    Attributes:
      rank: Of every product.
      scaling: Factor of every product, not divided by the rank.
      modules: Shell patterns of the names of maps (`map_name`): "*" is every map without a bias, "temporal/*" those of
        a stack, "*/attention/*", "text_head". The two halves of a gated block are one map, ".../mlp/up".
      param_dtype: Of the pairs; None: that of the weights.
    """

    rank: Size = 128
    scaling: Factor = 2.0
    modules: tuple[str, ...] = ("*",)
    param_dtype: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "modules", tuple(self.modules))
        if not isinstance(self.rank, int) or self.rank < 1:
            raise ConfigError(f"lora rank={self.rank!r}: must be a positive whole number")
        if not self.modules:
            raise ConfigError('lora modules=(): name the maps that have an update, ("*",) for all')
        if self.param_dtype not in (None, "float32", "bfloat16", "float16"):
            raise ConfigError(f"lora param_dtype={self.param_dtype!r}: use None, float32, bfloat16 or float16")

    def has(self, name: str) -> bool:
        """Return whether the map of this name (`map_name`) has an update, if it has no bias."""
        return not WITHOUT.search(name) and any(fnmatchcase(name, pattern) for pattern in self.modules)


class Pair(NamedTuple):
    """The parameters of an update, with the leading axes of the kernel, if it has any."""

    a: Float[Array, "*L r I"]
    b: Float[Array, "*L O r"]


def map_name(path: str) -> str:
    """Return the name of the map at a path of modules: without the numbers of layers and steps, `up` for a `gate`."""
    return re.sub(r"/gate$", "/up", _NUMBERS.sub("", path))


def is_update(path: str) -> bool:
    """Return whether the parameter at a path belongs to a pair."""
    return path.endswith(("lora_a", "lora_b"))


@contextlib.contextmanager
def updates(lora: LoRA | None) -> Iterator[None]:
    """Return a context in which modules that are set up and used have the updates of `lora`; None: none."""
    token = _ACTIVE.set(lora)
    try:
        with nn.intercept_methods(_Interceptor(lora)) if lora is not None else contextlib.nullcontext():
            yield
    finally:
        _ACTIVE.reset(token)


def merged(params: dict[str, Any], lora: LoRA) -> dict[str, Any]:
    """Return parameters of linear maps with their updates added to the kernels, in float32 and rounded once.

    Args:
      params: A tree; where it holds `lora_b` beside a `kernel`, `lora_a` is there too, or with the other half of the
        gated block (`up`).
      lora: The updates.
    """
    found: dict[str, Any] = {}
    for name, value in params.items():
        if not isinstance(value, dict):
            found[name] = value
            continue
        found[name] = merged(value, lora)
        pair = {part: found[name].pop(part, None) for part in ("lora_a", "lora_b")}
        if pair["lora_b"] is not None:
            a = pair["lora_a"] if pair["lora_a"] is not None else params["up"]["lora_a"]
            a, b = (jnp.asarray(part, jnp.float32) for part in (a, pair["lora_b"]))
            product = lora.scaling * jnp.einsum("...or,...ri->...oi", b, a, precision="highest")
            kernel = found[name]["kernel"]
            found[name]["kernel"] = (jnp.asarray(kernel, jnp.float32) + product).astype(kernel.dtype)
    return found


def require_active(lora: LoRA | None) -> None:
    """Check that a model with these updates is set up inside `updates`: it would run without them otherwise.

    Raises:
      ConfigError: It is not.
    """
    require(
        _ACTIVE.get() == lora,
        f"a model with lora={lora!r} is set up with updates of {_ACTIVE.get()!r}: they must be its own; call init or "
        "apply of the model, or enter moshijax.nn.lora.updates",
    )


class _Interceptor:
    """What happens around the methods of modules (`flax.linen.intercept_methods`)."""

    def __init__(self, lora: LoRA) -> None:
        self.lora = lora
        self._last: tuple[Any, Any, Any] = None, None, None

    def __call__(self, call: Callable, args: tuple, kwargs: dict, context: nn.module.InterceptorContext) -> Any:
        result, module, method = call(*args, **kwargs), context.module, context.method_name
        if isinstance(module, Linear | StackedLinear):
            if method == "setup":
                module.update = self._of_map(module)
            elif method == "__call__" and module.update is not None:
                result = result + module.product(self._low(module, *args, module.update.a), module.update.b)
        elif isinstance(module, Kernels):
            if method == "setup":
                module.updates = self._of_kernels(module)
            elif method == "kernel_of" and args[0] in module.updates:
                result = result + self._product(module.updates[args[0]], *args[1:])
        return result

    def _of_map(self, module: Linear | StackedLinear) -> Pair | None:
        """Add the pair of a map whose output its module returns."""
        if module.use_bias or not self.lora.has(map_name("/".join(module.path))):
            return None
        up = _second_half(module)
        return self._add(module, "", module.kernel, module.axes, module.fan_in, None if up is None else up.update.a)

    def _of_kernels(self, module: Kernels) -> dict[str, Pair]:
        """Add the pairs of small kernels, by their names."""
        out = {}
        for name, kernel in module.kernels.items():
            path, prefix = ((*module.path, name), f"{name}_") if name != "kernel" else (module.path, "")
            if self.lora.has(map_name("/".join(path))):
                out[name] = self._add(module, prefix, kernel, module.kernel_axes, kernel.shape[-1])
        return out

    def _add(
        self,
        module: nn.Module,
        prefix: str,
        kernel: Float[Array, "*L O I"],
        axes: tuple[str | None, ...],
        fan_in: int | np.ndarray,
        a: Array | None = None,
    ) -> Pair:
        """Add `lora_b`, zero, so that a new update does nothing, and `lora_a`, uniform in `+- 1 / sqrt(in)`.

        Args:
          module: Gets the parameters.
          prefix: Of their names.
          kernel: To which the pair belongs.
          axes: Logical axes of the kernel.
          fan_in: Columns in use: the others are zero and stay zero.
          a: The other map's, if the pair shares it; then there is no `lora_a` here.
        """
        *lead, rows, columns = kernel.shape
        *leading, row, column = axes
        rank, dtype = self.lora.rank, jnp.dtype(self.lora.param_dtype or kernel.dtype)

        def init(key: Array, shape: tuple[int, ...], dtype: Any) -> Array:
            return jnp.where(jnp.arange(columns) < fan_in, uniform(fan_in)(key, shape, dtype), 0)

        def parameter(name: str, init: Callable, shape: tuple[int, ...], axes: tuple[str | None, ...]) -> Array:
            return module.param(prefix + name, nn.with_logical_partitioning(init, axes), shape, dtype)

        b = parameter("lora_b", nn.initializers.zeros, (*lead, rows, rank), (*leading, row, None))
        if a is None:
            a = parameter("lora_a", init, (*lead, rank, columns), (*leading, None, column))
        return Pair(a, b)

    def _low(self, module: Linear | StackedLinear, x: Array, a: Array) -> Array:
        """Return `scaling A x`, scaled where it is small: forward, and backward where the gradient of `A x` arrives.

        The halves of a gated block, called one after the other, share the product and its gradient.
        """
        if self._last[0] is not x or self._last[1] is not a:
            self._last = x, a, self.lora.scaling * module.product(x, a)
        return self._last[2]

    def _product(self, pair: Pair, index: int | None = None) -> Float[Array, "*L O I"]:
        """Return `scaling B A`, which is added to a small kernel."""
        a, b = pair if index is None else (pair.a[index], pair.b[index])
        return self.lora.scaling * jnp.einsum("...or,...ri->...oi", b, a, precision="highest")


def _second_half(module: Linear | StackedLinear) -> Linear | StackedLinear | None:
    """Return the map that stands to `up` of a gated block as this one to `gate`; None if this one is not of a gate.

    Both read the same input, and the published adapters have one `A` for them.
    """
    if module.name == "gate":
        return module.parent.up
    if module.parent.name != "gate":
        return None
    steps, number = module.parent.parent.up.steps, module.name.removeprefix("steps")
    return steps[int(number.removeprefix("_"))] if number else steps

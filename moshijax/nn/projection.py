"""Linear maps with published `[out, in]` kernels, one per layer or one per depth step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moshijax.errors import ConfigError
from moshijax.nn.quantised import Quantised

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: Up to this many rows a matrix-vector product per row beats a matrix product on CPU.
MATVEC_ROWS = 4


def truncated_normal(fan_in: int) -> Callable:
    """Return an initialiser: normal with std `1 / sqrt(fan_in)`, cut at three std (`models/lm_utils.py` of `moshi`)."""
    return nn.initializers.truncated_normal(1.0 / math.sqrt(fan_in), lower=-3.0, upper=3.0)


def uniform(fan_in: int | np.ndarray) -> Callable:
    """Return an initialiser: uniform in `+- 1 / sqrt(fan_in)`, as PyTorch initialises a linear layer.

    Args:
      fan_in: Inputs, or an array of them that broadcasts to the parameter.
    """
    bound = 1.0 / np.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


INITIALIZERS = {"truncated_normal": truncated_normal, "uniform": uniform}


@partial(jax.custom_vjp, nondiff_argnums=(0, 3))
def contract(equation: str, x: Float[Array, "..."], kernel: Float[Array, "..."], precision: str | None) -> Array:
    """Multiply inputs by weights in the type of the inputs; the gradient of the weights is a float32 product.

    In the type of the inputs it would be rounded on every device before the sum over devices, and again before the sum
    over microbatches.

    Args:
      equation: As `jnp.einsum` takes it, without an ellipsis; each letter of an operand is in the other or the result.
      x: Inputs, in the type that the products run in.
      kernel: Weights of any type, cast to that of `x`.
      precision: Of all products.
    """
    return jnp.einsum(equation, x, kernel.astype(x.dtype), precision=precision)


def _contract_forward(equation: str, x: Array, kernel: Array, precision: str | None) -> tuple[Array, Any]:
    # Not a call of `contract`: policies of recomputation look for the product itself. The backward pass gets the kernel
    # as it is used here, so that devices that recompute the product gather the kernel once for both; and its type.
    used = kernel.astype(x.dtype)
    return jnp.einsum(equation, x, used, precision=precision), (x, used, jnp.zeros((0,), kernel.dtype))


def _contract_backward(equation: str, precision: str | None, kept: tuple[Array, Array, Array], gradient: Array) -> Any:
    (x, used, of_type), (operands, out) = kept, equation.split("->")
    first, second = operands.split(",")
    of_x = jnp.einsum(f"{out},{second}->{first}", gradient, used, precision=precision)
    of_kernel = jnp.einsum(
        f"{out},{first}->{second}", gradient, x, precision=precision, preferred_element_type=jnp.float32
    )
    return of_x, of_kernel.astype(of_type.dtype)


contract.defvjp(_contract_forward, _contract_backward)


def multiply(equation: str, x: Array, kernel: Array | Quantised, precision: str | None) -> Array:
    """Return what `contract` does; by a quantised kernel, whose rows are the last axis of the result, too.

    Their scales multiply the float32 product: only integers are read, and what is rounded is the result.
    """
    if not isinstance(kernel, Quantised):
        return contract(equation, x, kernel, precision)
    integers = kernel.integers.astype(x.dtype)  # exact in every type
    y = jnp.einsum(equation, x, integers, precision=precision, preferred_element_type=jnp.float32)
    return (y * kernel.scale).astype(x.dtype)


def linear(
    x: Float[Array, "... I"], kernel: Float[Array, "O I"] | Quantised, precision: str | None = "highest"
) -> Float[Array, "... O"]:
    """Return `x @ kernel.T` in the type of `x`, with the gradients of `contract`.

    A few rows are matrix-vector products on CPU, which read each weight once at full bandwidth.
    """
    lead = x.shape[:-1]
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 1:
        out = multiply("k,nk->n", rows[0], kernel, precision)[None]
    elif rows.shape[0] <= MATVEC_ROWS:
        out = jax.lax.platform_dependent(
            rows,
            kernel,
            cpu=lambda r, w: jnp.stack([multiply("k,nk->n", row, w, precision) for row in r]),
            default=lambda r, w: multiply("mk,nk->mn", r, w, precision),
        )
    else:
        out = multiply("mk,nk->mn", rows, kernel, precision)
    return out.reshape(*lead, kernel.shape[0])


def add_bias(y: Float[Array, "..."], bias: Float[Array, "..."]) -> Float[Array, "..."]:
    """Add a bias in float32, in which its gradient is summed too; the result has the type of `y`."""
    return (y.astype(jnp.float32) + bias.astype(jnp.float32)).astype(y.dtype)


class Linear(nn.Module):
    """`y = x W^T (+ b)`; parameters `kernel [out, in]` and `bias [out]`, in the published orientation.

    For inference the kernel may be `Quantised`.

    Attributes:
      features_in: Width of `x [..., in]`.
      features_out: Width of `y [..., out]`.
      axes: Logical axes of the rows and columns of the kernel, for the sharding table.
      use_bias: Add a bias, zero at first.
      initializer: Of the kernel, a name in `INITIALIZERS`.
      dtype: In which the product is computed; also that of `y`.
      param_dtype: Of new parameters.
      precision: Of the product, as JAX names it.
    """

    features_in: int
    features_out: int
    axes: tuple[str | None, str | None] = (None, None)
    use_bias: bool = False
    initializer: str = "truncated_normal"
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        init = nn.with_logical_partitioning(INITIALIZERS[self.initializer](self.features_in), self.axes)
        self.kernel = self.param("kernel", init, (self.features_out, self.features_in), dtype)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[:1])
            self.bias = self.param("bias", zeros, (self.features_out,), dtype)

    @property
    def fan_in(self) -> int:
        """Inputs of every output."""
        return self.features_in

    def product(self, x: Float[Array, "... I"], kernel: Float[Array, "O I"] | Quantised) -> Float[Array, "... O"]:
        """Return `x W^T` for any kernel, in the compute dtype."""
        return linear(x.astype(jnp.dtype(self.dtype)), kernel, self.precision)

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        y = self.product(x, self.kernel)
        return add_bias(y, self.bias) if self.use_bias else y


class StepLinear(nn.Module):
    """A linear map with weights per step of a short sequence; step k uses weight `schedule[k]`.

    Sequences are step-major, `[K, N, in] -> [K, N, out]`. Parameters: `steps_0 ..`, each those of a `Linear`, or with
    `stacked` one `steps` with a leading axis (`StackedLinear`). Attributes as in `Linear`, and:

    Attributes:
      schedule: The weight of every step.
      used: Rows (axis 0) or columns (axis 1) in use per weight, where they differ: the rest is zero and stays zero.
      used_axis: Axis of the kernel to which `used` refers.
      stacked: One array for the weights of all steps.
    """

    features_in: int
    features_out: int
    schedule: tuple[int, ...]
    axes: tuple[str | None, str | None] = (None, None)
    use_bias: bool = False
    initializer: str = "uniform"
    used: tuple[int, ...] | None = None
    used_axis: int = 0
    stacked: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    def setup(self) -> None:
        size = self.features_in, self.features_out
        settings = dict(dtype=self.dtype, param_dtype=self.param_dtype, precision=self.precision)
        if self.stacked:
            maps = ("steps", *self.axes), self.use_bias, self.initializer
            self.steps = StackedLinear(*size, self.schedule, *maps, self.used, self.used_axis, **settings)
        else:
            maps = self.axes, self.use_bias, self.initializer
            self.steps = [Linear(*size, *maps, **settings) for _ in range(max(self.schedule) + 1)]

    def __call__(self, x_KNI: Float[Array, "K N I"]) -> Float[Array, "K N O"]:
        if self.stacked:
            return self.steps(x_KNI)
        return jnp.stack([self.step(k, x_KNI[k]) for k in range(len(self.schedule))])

    def step(self, k: int, x_NI: Float[Array, "N I"]) -> Float[Array, "N O"]:
        """Run step k alone.

        Raises:
          ConfigError: The weights are stacked.
        """
        if self.stacked:
            raise ConfigError("stacked weights do not run step by step; call unstack_layers on the parameters first")
        return self.steps[self.schedule[k]](x_NI)


class StackedLinear(nn.Module):
    """The weights of all steps of a `StepLinear` in one array; parameters `kernel [S, out, in]` and `bias [S, out]`.

    Steps that share a weight are one matrix product, the others one batched product; inputs `[N, in]` are those of all
    steps and multiplied by each weight once. Attributes as in `StepLinear`, and `axes` begin with that of the weights.
    """

    features_in: int
    features_out: int
    schedule: tuple[int, ...]
    axes: tuple[str | None, str | None, str | None]
    use_bias: bool = False
    initializer: str = "uniform"
    used: tuple[int, ...] | None = None
    used_axis: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"

    @property
    def num_weights(self) -> int:
        return max(self.schedule) + 1

    @property
    def fan_in(self) -> int | np.ndarray:
        """Inputs of every output; where they differ per weight, an array `[S, 1, 1]`."""
        if self.used is None or self.used_axis == 0:
            return self.features_in
        return np.asarray(self.used)[:, None, None]

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        shape = (self.num_weights, self.features_out, self.features_in)

        def init(key, shape, dtype):
            fan_in = jnp.asarray(self.used or (self.features_in,) * shape[0], jnp.float32)
            if self.used is None or self.used_axis == 0:
                value = INITIALIZERS[self.initializer](self.features_in)(key, shape, dtype)
            else:
                value = INITIALIZERS[self.initializer](1)(key, shape, dtype) / jnp.sqrt(fan_in)[:, None, None].astype(
                    dtype
                )
            if self.used is not None:
                position = jnp.arange(shape[1 + self.used_axis])
                keep = position < fan_in[:, None]
                value = jnp.where(keep[:, :, None] if self.used_axis == 0 else keep[:, None, :], value, 0)
            return value

        self.kernel = self.param("kernel", nn.with_logical_partitioning(init, self.axes), shape, dtype)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[:2])
            self.bias = self.param("bias", zeros, shape[:2], dtype)

    def __call__(self, x: Float[Array, "*K N I"]) -> Float[Array, "K N O"]:
        y = self.product(x, self.kernel)
        return add_bias(y, self.bias[jnp.asarray(self.schedule)][:, None]) if self.use_bias else y

    def product(self, x: Float[Array, "*K N I"], kernel_SOI: Float[Array, "S O I"]) -> Float[Array, "K N O"]:
        """Return `x W^T` of every step for any stack of kernels, in the compute dtype."""
        x = x.astype(jnp.dtype(self.dtype))
        each_once = self.schedule == tuple(range(len(self.schedule)))
        if x.ndim == 2:
            weights, rows, _ = kernel_SOI.shape
            merged = jax.tree.map(lambda part: part.reshape(weights * rows, *part.shape[2:]), kernel_SOI)
            y = linear(x, merged, self.precision)
            y_SNO = jnp.swapaxes(y.reshape(-1, weights, rows), 0, 1)
            return y_SNO if each_once else y_SNO[jnp.asarray(self.schedule)]
        if each_once:
            return contract("kni,koi->kno", x, kernel_SOI, self.precision)
        return self._grouped(x, kernel_SOI)

    def _grouped(self, x_KNI: Array, kernel_SOI: Array) -> Array:
        """One batched product for every number of steps that a weight may serve."""
        by_size: dict[int, list[int]] = {}
        for weight in range(self.num_weights):
            by_size.setdefault(self.schedule.count(weight), []).append(weight)
        order: list[int] = []
        parts = []
        N = x_KNI.shape[1]
        for size, weights in by_size.items():
            steps = [k for weight in weights for k, w in enumerate(self.schedule) if w == weight]
            order += steps
            grouped = x_KNI[jnp.asarray(steps)].reshape(len(weights), size * N, -1)
            y = contract("gni,goi->gno", grouped, kernel_SOI[jnp.asarray(weights)], self.precision)
            parts.append(y.reshape(len(steps), N, -1))
        back = sorted(range(len(order)), key=order.__getitem__)
        return jnp.concatenate(parts)[jnp.asarray(back)]


class Kernels(nn.Module):
    """Base of modules that hold kernels of small linear maps among their parameters and multiply by them themselves.

    A module calls `add_kernels` in `setup` and reads them by `kernel_of`.
    """

    #: Logical axes of every kernel.
    kernel_axes: ClassVar[tuple[str | None, ...]] = ()

    @nn.nowrap
    def add_kernels(self, names: Sequence[str], shape: tuple[int, ...], dtype: str) -> None:
        """Add parameters `[..., out, in]` of one shape, initialised by `uniform`; only in `setup`, once."""
        init = nn.with_logical_partitioning(uniform(shape[-1]), self.kernel_axes)
        self.kernels = {name: self.param(name, init, shape, jnp.dtype(dtype)) for name in names}

    def kernel_of(self, name: str, index: int | None = None) -> Float[Array, "..."]:
        """Return a kernel in its parameter type, or with `index` that entry of its leading axis."""
        return self.kernels[name] if index is None else self.kernels[name][index]

"""Linear maps with published `[out, in]` kernels, one per layer or one per depth step."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moshijax.errors import ConfigError

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


def linear(
    x: Float[Array, "... I"], kernel: Float[Array, "O I"], precision: str | None = "highest"
) -> Float[Array, "... O"]:
    """Return `x @ kernel.T`.

    A few rows are matrix-vector products on CPU, which read each weight once at full bandwidth.
    """
    lead = x.shape[:-1]
    rows = x.reshape(-1, x.shape[-1])
    if rows.shape[0] == 1:
        out = jnp.dot(kernel, rows[0], precision=precision)[None]
    elif rows.shape[0] <= MATVEC_ROWS:
        out = jax.lax.platform_dependent(
            rows,
            kernel,
            cpu=lambda r, w: jnp.stack([jnp.dot(w, row, precision=precision) for row in r]),
            default=lambda r, w: jnp.einsum("mk,nk->mn", r, w, precision=precision),
        )
    else:
        out = jnp.einsum("mk,nk->mn", rows, kernel, precision=precision)
    return out.reshape(*lead, kernel.shape[0])


class Linear(nn.Module):
    """`y = x W^T (+ b)`; parameters `kernel [out, in]` and `bias [out]`, in the published orientation.

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

    def product(self, x: Float[Array, "... I"], kernel: Float[Array, "O I"]) -> Float[Array, "... O"]:
        """Return `x W^T` for any kernel, in the compute dtype."""
        dtype = jnp.dtype(self.dtype)
        return linear(x.astype(dtype), kernel.astype(dtype), self.precision)

    def __call__(self, x: Float[Array, "... I"]) -> Float[Array, "... O"]:
        y = self.product(x, self.kernel)
        return y + self.bias.astype(y.dtype) if self.use_bias else y


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

    Steps that share a weight are one matrix product, the others one batched product. Attributes as in `StepLinear`, and
    `axes` begin with that of the weights.
    """

    features_in: int
    features_out: int
    schedule: tuple[int, ...]
    axes: tuple[str | None, str | None, str | None]
    use_bias: bool
    initializer: str
    used: tuple[int, ...] | None
    used_axis: int
    dtype: str
    param_dtype: str
    precision: str | None

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

    def __call__(self, x_KNI: Float[Array, "K N I"]) -> Float[Array, "K N O"]:
        y = self.product(x_KNI, self.kernel)
        return y + self.bias.astype(y.dtype)[jnp.asarray(self.schedule)][:, None] if self.use_bias else y

    def product(self, x_KNI: Float[Array, "K N I"], kernel_SOI: Float[Array, "S O I"]) -> Float[Array, "K N O"]:
        """Return `x W^T` of every step for any stack of kernels, in the compute dtype."""
        dtype = jnp.dtype(self.dtype)
        x_KNI, kernel_SOI = x_KNI.astype(dtype), kernel_SOI.astype(dtype)
        if self.schedule == tuple(range(len(self.schedule))):
            return jnp.einsum("kni,koi->kno", x_KNI, kernel_SOI, precision=self.precision)
        return self._grouped(x_KNI, kernel_SOI)

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
            y = jnp.einsum("gni,goi->gno", grouped, kernel_SOI[jnp.asarray(weights)], precision=self.precision)
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

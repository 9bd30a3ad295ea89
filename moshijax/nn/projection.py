"""Linear maps with published `[out, in]` kernels, one per layer or one per depth step."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.nn import lora
from moshijax.nn.lora import Place

if TYPE_CHECKING:
    from jaxtyping import Array, Float

#: Up to this many rows a matrix-vector product per row beats a matrix product on CPU.
MATVEC_ROWS = 4


def truncated_normal(fan_in: int) -> Callable:
    """Normal with std `1 / sqrt(fan_in)`, cut at three std (`models/lm_utils.py` of `moshi`)."""
    return nn.initializers.truncated_normal(1.0 / math.sqrt(fan_in), lower=-3.0, upper=3.0)


def uniform(fan_in: int) -> Callable:
    """Uniform in `+- 1 / sqrt(fan_in)`, what PyTorch gives a linear layer that nobody initialises."""
    bound = 1.0 / math.sqrt(fan_in)

    def init(key, shape, dtype=jnp.float32):
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


INITIALIZERS = {"truncated_normal": truncated_normal, "uniform": uniform}


def linear(
    x: Float[Array, "... I"], kernel: Float[Array, "O I"], precision: str | None = "highest"
) -> Float[Array, "... O"]:
    """`x @ kernel.T`; for a few rows as matrix-vector products, which read each weight once at full bandwidth."""
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
    """`y = x W^T (+ b)`; parameters `kernel [out, in]` and `bias [out]`, axes named for the sharding table.

    At a `place` with a low-rank update also `lora_a`, `lora_b` (`moshijax.nn.lora`); without `owns_low` the product
    `A x` is that of another map of the same input, whose `low` gives it.
    """

    features_in: int
    features_out: int
    axes: tuple[str | None, str | None] = (None, None)
    use_bias: bool = False
    initializer: str = "truncated_normal"
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"
    place: Place = Place()
    owns_low: bool = True

    def setup(self) -> None:
        dtype = jnp.dtype(self.param_dtype)
        init = nn.with_logical_partitioning(INITIALIZERS[self.initializer](self.features_in), self.axes)
        self.kernel = self.param("kernel", init, (self.features_out, self.features_in), dtype)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, self.axes[:1])
            self.bias = self.param("bias", zeros, (self.features_out,), dtype)
        self.update = None if self.use_bias else self.place.update
        if self.update is not None:
            self.lora_b = lora.up(self, self.update, self.features_out, self.axes[0], self.param_dtype)
            if self.owns_low:
                self.lora_a = lora.down(self, self.update, self.features_in, self.axes[1], self.param_dtype)

    def low(self, x: Float[Array, "... I"]) -> Float[Array, "... r"] | None:
        """`A x`; None without an update."""
        if self.update is None:
            return None
        dtype = jnp.dtype(self.dtype)
        return linear(x.astype(dtype), self.lora_a.astype(dtype), self.precision)

    def __call__(self, x: Float[Array, "... I"], low: Float[Array, "... r"] | None = None) -> Float[Array, "... O"]:
        dtype = jnp.dtype(self.dtype)
        y = linear(x.astype(dtype), self.kernel.astype(dtype), self.precision)
        if self.update is not None:
            low = self.low(x) if low is None else low
            y = y + self.update.scaling * linear(low, self.lora_b.astype(dtype), self.precision)
        return y + self.bias.astype(dtype) if self.use_bias else y


class StepLinear(nn.Module):
    """A linear map with weights per step of a short sequence; step k uses weight `schedule[k]`.

    Sequences are step-major, `[K, N, I] -> [K, N, O]`. Parameters: `steps_0 ..`, or with `stacked` one `steps` with a
    leading axis, where steps that share a weight are one matrix product and the others one batched product. Updates as
    in `Linear`.
    """

    features_in: int
    features_out: int
    schedule: tuple[int, ...]
    axes: tuple[str | None, str | None] = (None, None)
    use_bias: bool = False
    initializer: str = "uniform"
    #: Rows (axis 0) or columns (axis 1) in use per weight, where they differ: the rest is zero and stays zero.
    used: tuple[int, ...] | None = None
    used_axis: int = 0
    stacked: bool = False
    dtype: str = "float32"
    param_dtype: str = "float32"
    precision: str | None = "highest"
    place: Place = Place()
    owns_low: bool = True

    @property
    def num_weights(self) -> int:
        return max(self.schedule) + 1

    def setup(self) -> None:
        settings = dict(param_dtype=self.param_dtype, place=self.place, owns_low=self.owns_low)
        if self.stacked:
            self.steps = _StackedKernels(
                self.features_in,
                self.features_out,
                self.num_weights,
                self.axes,
                self.use_bias,
                self.initializer,
                self.used,
                self.used_axis,
                **settings,
            )
        else:
            settings |= dict(dtype=self.dtype, precision=self.precision)
            self.steps = [
                Linear(self.features_in, self.features_out, self.axes, self.use_bias, self.initializer, **settings)
                for _ in range(self.num_weights)
            ]

    def low(self, x_KNI: Float[Array, "K N I"]) -> Float[Array, "K N r"] | None:
        """Return `A x` of every step; None without an update."""
        if not self.stacked:
            lows = [self.low_step(k, x_KNI[k]) for k in range(len(self.schedule))]
            return None if lows[0] is None else jnp.stack(lows)
        return None if self.steps.update is None else self._product(x_KNI, self.steps.lora_a)

    def low_step(self, k: int, x_NI: Float[Array, "N I"]) -> Float[Array, "N r"] | None:
        """Return `low` of step k alone; not with `stacked`."""
        return self.steps[self.schedule[k]].low(x_NI)

    def __call__(
        self, x_KNI: Float[Array, "K N I"], low_KNR: Float[Array, "K N r"] | None = None
    ) -> Float[Array, "K N O"]:
        steps = len(self.schedule)
        if not self.stacked:
            lows = [None] * steps if low_KNR is None else low_KNR
            return jnp.stack([self.step(k, x_KNI[k], lows[k]) for k in range(steps)])
        y = self._product(x_KNI, self.steps.kernel)
        if self.steps.update is not None:
            low_KNR = self.low(x_KNI) if low_KNR is None else low_KNR
            y = y + self.steps.update.scaling * self._product(low_KNR, self.steps.lora_b)
        if not self.use_bias:
            return y
        return y + self.steps.bias.astype(y.dtype)[jnp.asarray(self.schedule)][:, None]

    def step(self, k: int, x_NI: Float[Array, "N I"], low_NR: Float[Array, "N r"] | None = None) -> Float[Array, "N O"]:
        """Run step k alone.

        Raises:
          ConfigError: The weights are stacked.
        """
        if self.stacked:
            raise ConfigError("stacked weights do not run step by step; call unstack_layers on the parameters first")
        return self.steps[self.schedule[k]](x_NI, low_NR)

    def _product(self, x_KNI: Array, kernels: Array) -> Array:
        """All steps through the stacked kernels of theirs."""
        dtype = jnp.dtype(self.dtype)
        x_KNI, kernels = x_KNI.astype(dtype), kernels.astype(dtype)
        if self.schedule == tuple(range(len(self.schedule))):
            return jnp.einsum("kni,koi->kno", x_KNI, kernels, precision=self.precision)
        return self._grouped(x_KNI, kernels)

    def _grouped(self, x_KNI: Array, kernel: Array) -> Array:
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
            y = jnp.einsum("gni,goi->gno", grouped, kernel[jnp.asarray(weights)], precision=self.precision)
            parts.append(y.reshape(len(steps), N, -1))
        back = sorted(range(len(order)), key=order.__getitem__)
        return jnp.concatenate(parts)[jnp.asarray(back)]


class _StackedKernels(nn.Module):
    """`kernel [S, out, in]` and `bias [S, out]`; with an update `lora_a [S, r, in]` and `lora_b [S, out, r]`."""

    features_in: int
    features_out: int
    num_weights: int
    axes: tuple[str | None, str | None]
    use_bias: bool
    initializer: str
    used: tuple[int, ...] | None
    used_axis: int
    param_dtype: str
    place: Place
    owns_low: bool

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

        self.kernel = self.param("kernel", nn.with_logical_partitioning(init, ("steps", *self.axes)), shape, dtype)
        if self.use_bias:
            zeros = nn.with_logical_partitioning(nn.initializers.zeros, ("steps", self.axes[0]))
            self.bias = self.param("bias", zeros, shape[:2], dtype)
        self.update = None if self.use_bias else self.place.update
        if self.update is not None:
            lead = (("steps", self.num_weights),)
            self.lora_b = lora.up(self, self.update, self.features_out, self.axes[0], self.param_dtype, lead)
            if self.owns_low:
                used = self.used if self.used_axis == 1 else None
                self.lora_a = lora.down(
                    self, self.update, self.features_in, self.axes[1], self.param_dtype, lead, used=used
                )

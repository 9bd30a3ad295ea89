"""Causal convolutions over time, whole-sequence and streaming.

All padding is on the left, `effective kernel - stride` steps, so one output comes out for every `stride` inputs and
nothing of the future is used (Mimi, arXiv 2410.00037 section 3.3.1; upstream `moshi/modules/conv.py`).

Kernels have two forms; a layer takes the one it finds among its parameters:

* `kernel [k, in / groups, out]`, for training and for high-rate layers: a convolution, which XLA does near peak
  speed;
* `kernel_rows [out, k * in]`, for the inference layout of low-rate layers with large kernels: blocks times a matrix,
  which for a single frame reads every weight once, in order. `rows_from_kernel` converts.

Transposed convolutions are a matrix product and an overlap-add, never input dilation (ten times slower on CPU).
"""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from typing import TYPE_CHECKING

import flax.linen as nn
import jax
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.nn.projection import linear, uniform
from moshijax.nn.streaming import State, keep_frozen, select_rows, whole_blocks

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

HIGHEST = jax.lax.Precision.HIGHEST
PADDINGS = ("zeros", "replicate")
#: Steps of a one-channel input that are taken together.
FOLD = 8


def rows_from_kernel(kernel: Float[Array, "k I O"]) -> Float[Array, "O kI"]:
    """The `kernel_rows` form of a `CausalConv` kernel (groups = 1)."""
    return kernel.reshape(-1, kernel.shape[-1]).T


def rows_from_transposed_kernel(kernel: Float[Array, "I k O"]) -> Float[Array, "kO I"]:
    """The `kernel_rows` form of a `TransposedConv` kernel (not depthwise)."""
    return kernel.reshape(kernel.shape[0], -1).T


def correlate(
    padded: Float[Array, "B L I"], kernel: Float[Array, "k i O"], stride: int, dilation: int, groups: int
) -> Float[Array, "B M O"]:
    return jax.lax.conv_general_dilated(
        padded,
        kernel,
        window_strides=(stride,),
        padding="VALID",
        rhs_dilation=(dilation,),
        dimension_numbers=("NWC", "WIO", "NWC"),
        feature_group_count=groups,
        precision=HIGHEST,
    )


def correlate_rows(
    padded: Float[Array, "B L I"], kernel: Float[Array, "k i O"], stride: int, dilation: int, groups: int
) -> Float[Array, "B M O"]:
    """`correlate`, with each row of the batch apart on CPU.

    XLA's convolution on CPU sums the last rows of a batch in another order than the first where vectors are 8 floats
    wide, and a call must not depend on its row.
    """

    def apart(rows, kernel):
        return jax.lax.map(lambda row: correlate(row[None], kernel, stride, dilation, groups)[0], rows)

    def together(rows, kernel):
        return correlate(rows, kernel, stride, dilation, groups)

    return jax.lax.platform_dependent(padded, kernel, cpu=apart, default=together)


@jax.custom_vjp
def correlate_folded(padded: Float[Array, "B L 1"], kernel: Float[Array, "k 1 O"]) -> Float[Array, "B M O"]:
    """Correlation of one channel with up to `FOLD + 1` taps: M = L - k + 1 outputs, a multiple of `FOLD`.

    A convolution of one channel leaves vector units idle. Here `FOLD` steps are one row, and two rows in turn are
    multiplied by a matrix that holds the taps once for each output of a row. The gradient is that of the convolution,
    which has no such trouble.
    """
    taps, _, features = kernel.shape
    rows = (padded.shape[1] - taps + 1) // FOLD
    blocks = jnp.pad(padded[..., 0], ((0, 0), (FOLD + 1 - taps, 0))).reshape(padded.shape[0], rows + 1, FOLD)
    pairs = jnp.concatenate([blocks[:, :-1], blocks[:, 1:]], axis=-1)
    # Output t of a row reads tap j from step t + j + FOLD + 1 - taps of its pair.
    tap = jnp.arange(2 * FOLD)[:, None] - jnp.arange(FOLD) - (FOLD + 1 - taps)
    inside = (tap >= 0) & (tap < taps)
    matrix = jnp.where(inside[..., None], kernel[jnp.clip(tap, 0, taps - 1), 0], 0.0)
    folded = jnp.einsum("brs,sto->brto", pairs, matrix, precision=HIGHEST)
    return folded.reshape(padded.shape[0], rows * FOLD, features)


def _folded_forward(padded, kernel):
    return correlate_folded(padded, kernel), (padded, kernel)


def _folded_backward(inputs, gradient):
    return jax.vjp(lambda padded, kernel: correlate(padded, kernel, 1, 1, 1), *inputs)[1](gradient)


correlate_folded.defvjp(_folded_forward, _folded_backward)


def overlap_add(taps: Float[Array, "B L k O"], stride: int) -> Float[Array, "B L+ S O"]:
    """Add up what every step contributes, tap j of step t at time `t * stride + j`, as groups of `stride` steps."""
    size = taps.shape[2]
    groups = -(-size // stride)
    if size % stride:
        taps = jnp.pad(taps, ((0, 0), (0, 0), (0, groups * stride - size), (0, 0)))
    total = 0
    for g in range(groups):
        part = taps[:, :, g * stride : (g + 1) * stride]
        total += jnp.pad(part, ((0, 0), (g, groups - 1 - g), (0, 0), (0, 0)))
    return total


class CausalConv(nn.Module):
    """`[B, L, in] -> [B, L / stride, out]`; a cross-correlation. Float32, HIGHEST precision.

    Attributes:
      in_features: input channels.
      features: output channels.
      kernel_size: taps; `(kernel_size - 1) * dilation + 1` must be at least `stride`.
      stride: input steps per output step.
      dilation: input steps between taps.
      groups: input and output channels are split in so many groups; `in_features` means depthwise.
      use_bias: add a bias.
      padding: `zeros`, or `replicate`: the first step of the sequence is repeated before it. Replicate padding
        needs a block of at least as many steps as are padded when it streams.

    Raises:
      ConfigError: from the shape rules above; from `__call__` and `step`, if L is not a positive multiple of
        stride.
    """

    in_features: int
    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1
    groups: int = 1
    use_bias: bool = True
    padding: str = "zeros"

    def __post_init__(self):
        super().__post_init__()
        if self.padding not in PADDINGS:
            raise ConfigError(f"padding {self.padding!r} is not one of {', '.join(PADDINGS)}")
        if self.left_padding < 0:
            raise ConfigError(
                f"kernel_size {self.kernel_size} must be larger than stride {self.stride}; enlarge the kernel"
            )
        if self.in_features % self.groups or self.features % self.groups:
            raise ConfigError(f"groups {self.groups} must divide channels {self.in_features} and {self.features}")
        if self.padding == "replicate" and self.left_padding > self.stride:
            raise ConfigError(
                f"replicate padding of {self.left_padding} steps needs stride {self.stride} to be as large"
            )

    @property
    def left_padding(self) -> int:
        return (self.kernel_size - 1) * self.dilation + 1 - self.stride

    @property
    def block_size(self) -> int:
        return self.stride

    @property
    def output_ratio(self) -> Fraction:
        return Fraction(1, self.stride)

    @property
    def receptive_field(self) -> int | None:
        return None if self.padding == "replicate" else self.left_padding + self.stride

    def setup(self):
        if self.has_variable("params", "kernel_rows"):
            self.kernel_rows = self.get_variable("params", "kernel_rows")
        else:
            self.kernel_rows = None
            fan_in = self.kernel_size * self.in_features // self.groups
            shape = (self.kernel_size, self.in_features // self.groups, self.features)
            self.kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32)
        if self.use_bias:
            fan_in = self.kernel_size * self.in_features // self.groups
            self.bias = self.param("bias", uniform(fan_in), (self.features,), jnp.float32)

    def _correlate(self, padded: Array, correlate: Callable[..., Array]) -> Array:
        """No padding: `padded` already has `left_padding` steps in front."""
        if self.kernel_rows is None and self._folds(padded.shape[1] - self.left_padding):
            y = correlate_folded(padded, self.kernel)
        elif self.kernel_rows is None:
            y = correlate(padded, self.kernel, self.stride, self.dilation, self.groups)
        else:
            steps = (padded.shape[1] - self.left_padding) // self.stride
            last = (steps - 1) * self.stride + 1
            taps = [
                padded[:, j : j + last : self.stride] for j in range(0, self.kernel_size * self.dilation, self.dilation)
            ]
            y = linear(jnp.concatenate(taps, axis=-1), self.kernel_rows)
        return y + self.bias if self.use_bias else y

    @nn.nowrap
    def _folds(self, steps: int) -> bool:
        plain = self.in_features == self.stride == self.dilation == 1
        return plain and 1 < self.kernel_size <= FOLD + 1 and steps % FOLD == 0

    def __call__(self, x: Float[Array, "B L I"]) -> Float[Array, "B M O"]:
        whole_blocks(x.shape[1], self.stride, type(self).__name__)
        if self.padding == "replicate":
            before = jnp.repeat(x[:, :1], self.left_padding, axis=1)
        else:
            before = jnp.zeros((x.shape[0], self.left_padding, x.shape[2]), x.dtype)
        return self._correlate(jnp.concatenate([before, x], axis=1), correlate)

    def step(
        self, state: State, x: Float[Array, "B L I"], active: Bool[Array, " B"] | None = None
    ) -> tuple[State, Float[Array, "B M O"]]:
        whole_blocks(x.shape[1], self.stride, type(self).__name__)
        before = state["previous"]
        if self.padding == "replicate":
            before = jnp.where(state["first"][:, None, None], x[:, :1], before)
        padded = jnp.concatenate([before, x], axis=1)
        new = {"previous": padded[:, padded.shape[1] - self.left_padding :]}
        if self.padding == "replicate":
            new["first"] = jnp.zeros_like(state["first"])
        return keep_frozen(active, new, state), self._correlate(padded, correlate_rows if len(x) > 1 else correlate)

    @nn.nowrap
    def init_state(self, batch_size: int) -> State:
        state = {"previous": jnp.zeros((batch_size, self.left_padding, self.in_features), jnp.float32)}
        if self.padding == "replicate":
            state["first"] = jnp.ones((batch_size,), bool)
        return state

    @nn.nowrap
    def reset(self, state: State, rows: Bool[Array, " B"]) -> State:
        return select_rows(rows, self.init_state(rows.shape[0]), state)


class TransposedConv(nn.Module):
    """`[B, L, in] -> [B, L * stride, out]`: input step t adds `kernel[:, j]` times itself to output step
    t * stride + j; the last `kernel_size - stride` steps are dropped, so that the layer is causal. Float32,
    HIGHEST precision.

    Attributes:
      in_features: input channels.
      features: output channels; with `depthwise` the same number.
      kernel_size: taps, at least `stride`.
      stride: output steps per input step.
      depthwise: every channel has its own taps (kernel `[k, in]`).
      use_bias: add a bias, once per output step.
    """

    in_features: int
    features: int
    kernel_size: int
    stride: int
    depthwise: bool = False
    use_bias: bool = True

    block_size = 1

    def __post_init__(self):
        super().__post_init__()
        if self.kernel_size < self.stride:
            raise ConfigError(
                f"kernel_size {self.kernel_size} must be at least stride {self.stride}; enlarge the kernel"
            )
        if self.depthwise and self.features != self.in_features:
            raise ConfigError(f"depthwise: features {self.features} must equal in_features {self.in_features}")

    @property
    def overlap(self) -> int:
        return self.kernel_size - self.stride

    @property
    def output_ratio(self) -> Fraction:
        return Fraction(self.stride)

    @property
    def receptive_field(self) -> int:
        return -(-self.kernel_size // self.stride)

    def setup(self):
        fan_in = self.kernel_size if self.depthwise else self.kernel_size * self.features
        self.kernel_rows = self.kernel = None
        if self.has_variable("params", "kernel_rows"):
            self.kernel_rows = self.get_variable("params", "kernel_rows")
        elif self.depthwise:
            self.kernel = self.param("kernel", uniform(fan_in), (self.kernel_size, self.in_features), jnp.float32)
        else:
            shape = (self.in_features, self.kernel_size, self.features)
            self.kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32)
        if self.use_bias:
            self.bias = self.param("bias", uniform(fan_in), (self.features,), jnp.float32)

    def _spread(self, x: Float[Array, "B L I"]) -> Float[Array, "B L+ S O"]:
        """All contributions, added where they overlap, without bias: `L + ceil(overlap / stride)` groups of stride
        steps."""
        if self.depthwise:
            taps = x[:, :, None, :] * self.kernel
        elif self.kernel_rows is not None:
            taps = linear(x, self.kernel_rows).reshape(*x.shape[:2], self.kernel_size, self.features)
        else:
            # One contracted axis: with (b, l) contracted as two, XLA transposes, and the kernel's gradient takes 5
            # times longer.
            taps = jnp.dot(
                x.reshape(-1, self.in_features), self.kernel.reshape(self.in_features, -1), precision=HIGHEST
            )
            taps = taps.reshape(*x.shape[:2], self.kernel_size, self.features)
        return overlap_add(taps, self.stride)

    def __call__(self, x: Float[Array, "B L I"]) -> Float[Array, "B M O"]:
        length = whole_blocks(x.shape[1], 1, type(self).__name__)
        y = self._spread(x)[:, :length].reshape(x.shape[0], length * self.stride, self.features)
        return y + self.bias if self.use_bias else y

    def step(
        self, state: State, x: Float[Array, "B L I"], active: Bool[Array, " B"] | None = None
    ) -> tuple[State, Float[Array, "B M O"]]:
        length = whole_blocks(x.shape[1], 1, type(self).__name__)
        y = self._spread(x)
        y = y.reshape(x.shape[0], -1, self.features)[:, : length * self.stride + self.overlap]
        partial = state["partial"]
        y = y + jnp.pad(partial, ((0, 0), (0, y.shape[1] - self.overlap), (0, 0)))
        new = {"partial": y[:, length * self.stride :]}
        y = y[:, : length * self.stride]
        return keep_frozen(active, new, state), y + self.bias if self.use_bias else y

    @nn.nowrap
    def init_state(self, batch_size: int) -> State:
        return {"partial": jnp.zeros((batch_size, self.overlap, self.features), jnp.float32)}

    @nn.nowrap
    def reset(self, state: State, rows: Bool[Array, " B"]) -> State:
        return select_rows(rows, self.init_state(rows.shape[0]), state)

"""Convolutions that see as much of the future as of the past. They do not stream. Float32, HIGHEST precision.

Kernels have the forms of `moshijax.nn.conv`: `[k, in, out]`, transposed `[in, k, out]`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import flax.linen as nn
import jax.numpy as jnp

from moshijax.errors import ConfigError
from moshijax.nn.conv import HIGHEST, correlate, overlap_add
from moshijax.nn.projection import uniform

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class CentredConv(nn.Module):
    """`[B, L, in] -> [B, ceil(L / stride), out]`, a cross-correlation with as many zeros before as behind.

    As `nn.Conv1d` of PyTorch with padding `dilation * (kernel_size - 1) / 2`. Parameters: `kernel [k, in, out]` and
    `bias [out]`.

    Attributes:
      in_features: Input channels.
      features: Output channels.
      kernel_size: Taps, an odd number.
      stride: Input steps per output step.
      dilation: Input steps between taps.

    Raises:
      ConfigError: An even kernel, which has no centre.
    """

    in_features: int
    features: int
    kernel_size: int
    stride: int = 1
    dilation: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size % 2 == 0:
            raise ConfigError(f"kernel_size {self.kernel_size} is even: a centred convolution needs an odd one")

    def setup(self) -> None:
        fan_in = self.kernel_size * self.in_features
        shape = (self.kernel_size, self.in_features, self.features)
        self.kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32)
        self.bias = self.param("bias", uniform(fan_in), (self.features,), jnp.float32)

    def __call__(self, x: Float[Array, "B L I"]) -> Float[Array, "B M O"]:
        side = self.dilation * (self.kernel_size - 1) // 2
        padded = jnp.pad(x, ((0, 0), (side, side), (0, 0)))
        return correlate(padded, self.kernel, self.stride, self.dilation, 1) + self.bias


class CentredTransposedConv(nn.Module):
    """`[B, L, in] -> [B, L * stride, out]`: the middle of all contributions, cut off alike on both sides.

    As `nn.ConvTranspose1d` of PyTorch with padding `(kernel_size - stride) / 2`. Parameters: `kernel [in, k, out]` and
    `bias [out]`.

    Attributes:
      in_features: Input channels.
      features: Output channels.
      kernel_size: Taps, at least `stride` and more by an even number.
      stride: Output steps per input step.

    Raises:
      ConfigError: A kernel that leaves an odd number of steps, or less than none, to cut off.
    """

    in_features: int
    features: int
    kernel_size: int
    stride: int

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kernel_size < self.stride or (self.kernel_size - self.stride) % 2:
            raise ConfigError(
                f"kernel_size {self.kernel_size} of stride {self.stride}: must be the stride and an even number of taps"
            )

    def setup(self) -> None:
        fan_in = self.kernel_size * self.features
        shape = (self.in_features, self.kernel_size, self.features)
        self.kernel = self.param("kernel", uniform(fan_in), shape, jnp.float32)
        self.bias = self.param("bias", uniform(fan_in), (self.features,), jnp.float32)

    def __call__(self, x: Float[Array, "B L I"]) -> Float[Array, "B M O"]:
        rows = x.reshape(-1, self.in_features)
        taps = jnp.dot(rows, self.kernel.reshape(self.in_features, -1), precision=HIGHEST)
        taps = taps.reshape(*x.shape[:2], self.kernel_size, self.features)
        y = overlap_add(taps, self.stride).reshape(x.shape[0], -1, self.features)
        side = (self.kernel_size - self.stride) // 2
        return y[:, side : side + x.shape[1] * self.stride] + self.bias

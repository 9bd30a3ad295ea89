"""SEANet: the convolutional encoder and decoder of the codec (arXiv 2410.00037 section 3.3.1; upstream
`modules/seanet.py`).

Both are plain chains; the index of a part in its chain is the index in the published tensor names.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

import jax.numpy as jnp

from moshijax.codec.config import SeanetConfig
from moshijax.nn.conv import CausalConv, TransposedConv
from moshijax.nn.streaming import Chain, Pointwise, Residual

if TYPE_CHECKING:
    from jaxtyping import Array


def elu(x: Array) -> Array:
    """Apply ELU with alpha 1; the exponential is written so that it vectorises and never overflows."""
    return jnp.where(x > 0, x, jnp.exp(jnp.minimum(x, 0)) - 1)


ELU = Pointwise(elu)
# Layers are built detached (parent=None): a chain may be made anywhere, bound or not, and whoever holds it adopts it.
_Conv = partial(CausalConv, parent=None)
_Transposed = partial(TransposedConv, parent=None)
_Chain = partial(Chain, parent=None)


def _residual_block(config: SeanetConfig, channels: int, index: int) -> Residual:
    hidden = channels // config.compress
    return Residual(
        _Chain(
            (
                ELU,
                _Conv(channels, hidden, config.residual_kernel_size, dilation=config.dilation_base**index),
                ELU,
                _Conv(hidden, channels, 1),
            )
        ),
        parent=None,
    )


def encoder(config: SeanetConfig) -> Chain:
    """Make the chain from a waveform `[B, N, 1]` to a latent `[B, N / hop, dimension]`."""
    channels = config.n_filters
    parts = [_Conv(1, channels, config.kernel_size)]
    for ratio in reversed(config.ratios):
        parts += [_residual_block(config, channels, i) for i in range(config.n_residual_layers)]
        parts += [ELU, _Conv(channels, 2 * channels, 2 * ratio, stride=ratio)]
        channels *= 2
    parts += [ELU, _Conv(channels, config.dimension, config.last_kernel_size)]
    return _Chain(tuple(parts))


def decoder(config: SeanetConfig) -> Chain:
    """Make the chain from a latent `[B, L, dimension]` to a waveform `[B, L * hop, 1]`."""
    channels = config.n_filters * 2 ** len(config.ratios)
    parts = [_Conv(config.dimension, channels, config.kernel_size)]
    for ratio in config.ratios:
        parts += [ELU, _Transposed(channels, channels // 2, 2 * ratio, stride=ratio)]
        channels //= 2
        parts += [_residual_block(config, channels, i) for i in range(config.n_residual_layers)]
    parts += [ELU, _Conv(channels, 1, config.last_kernel_size)]
    return _Chain(tuple(parts))

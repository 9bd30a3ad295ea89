from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.lm.config import DepthConfig
from moshijax.nn import causal_attention as causal
from moshijax.nn.transformer import TransformerConfig
from tests.train.support.devices import run_on_devices

KEY = jax.random.key(0)


def arrays(T, groups=2, repeat=2, width=4, batch=2):
    q = jax.random.normal(KEY, (batch, T, groups, repeat, width))
    k, v = jax.random.normal(jax.random.key(1), (2, batch, T, groups, width))
    return q, k, v


def segments_of(T, batch=2):
    """Documents of changing lengths, others in each row."""
    return jnp.stack([jnp.cumsum(jnp.arange(T) % (17 + 30 * row) == 5) for row in range(batch)]).astype(jnp.int32)


def full(context, segments):
    """Attention by one mask over everything."""

    def attend(q, k, v):
        position = jnp.arange(q.shape[1])
        mask = causal.window_mask(position, position, context)
        if segments is not None:
            mask = mask & (segments[:, :, None] == segments[:, None, :])[:, None, None]
        return causal.attend(q, k.swapaxes(1, 2), v.swapaxes(1, 2), mask, "highest")

    return attend


def value_and_gradients(attend, q, k, v):
    weight = jax.random.normal(jax.random.key(2), q.shape)
    return jax.jit(jax.value_and_grad(lambda *x: jnp.sum(attend(*x) * weight), (0, 1, 2)))(q, k, v)


def assert_equal(one, two, **tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, **tolerance), one, two)


@pytest.mark.parametrize(
    ("T", "context", "limit", "with_segments"),
    [
        (130, 16, 2048, False),
        (700, 100, 2048, True),
        (700, 100, 2048, False),
        (700, 300, 512, False),
        (600, None, 512, True),
        (600, None, 512, False),
    ],
)
def test_long_sequences_in_pieces(monkeypatch, T, context, limit, with_segments):
    q, k, v = arrays(T)
    segments = segments_of(T) if with_segments else None
    monkeypatch.setattr(causal, "FULL_ATTENTION_LIMIT", limit)
    monkeypatch.setattr(causal, "SCORE_BUDGET", 1 << 16)
    pieces = lambda q, k, v: causal.attend_sequence(q, k, v, context, "highest", segments)  # noqa: E731
    results = [value_and_gradients(f, q, k, v) for f in (full(context, segments), pieces)]
    assert_equal(*results, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(("T", "context", "with_segments"), [(150, None, False), (300, 70, False), (150, 40, True)])
def test_the_tpu_kernel_gives_what_xla_gives(T, context, with_segments):
    """In interpret mode; the lengths are not whole blocks."""
    q, k, v = arrays(T, width=16)
    segments = segments_of(T) if with_segments else None

    def kernel(q, k, v):
        return causal.causal_attention(q, k, v, context, "highest", "splash", segments)

    results = [value_and_gradients(f, q, k, v) for f in (full(context, segments), kernel)]
    assert_equal(*results, atol=3e-4, rtol=1e-4)


def test_the_tpu_kernel_on_several_devices():
    run_on_devices(4, "tests.nn.splash_devices:agrees_with_xla")


@pytest.mark.parametrize("context", [None, 16, 200])
def test_what_is_asked_of_cudnn_is_this_attention(context):
    """The same call with jax's own form of it; cuDNN itself needs a GPU."""
    q, k, v = arrays(130)
    asked = lambda q, k, v: causal.dot_product(q, k, v, context, "xla")  # noqa: E731
    with jax.default_matmul_precision("highest"):
        results = [value_and_gradients(f, q, k, v) for f in (full(context, None), asked)]
    assert_equal(*results, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize(
    ("where", "dtype", "head_dim", "segments", "expected"),
    [
        ("cpu", "float32", 64, False, "xla"),
        ("cpu", "bfloat16", 64, False, "xla"),
        ("gpu", "bfloat16", 128, False, "cudnn"),
        ("gpu", "float32", 128, False, "xla"),
        ("gpu", "bfloat16", 12, False, "xla"),
        ("gpu", "bfloat16", 128, True, "xla"),
        ("tpu", "bfloat16", 128, True, "splash"),
        ("tpu", "float32", 128, False, "xla"),
    ],
)
def test_auto_takes_what_suits_the_platform(where, dtype, head_dim, segments, expected):
    assert causal.choose("auto", where, dtype, head_dim, segments) == expected
    with causal.plain_attention():
        assert causal.choose("auto", where, dtype, head_dim, segments) == "xla"
        assert causal.choose("splash", where, dtype, head_dim, segments) == "xla"
    assert causal.choose("xla", where, dtype, head_dim, segments) == "xla"


def test_what_an_implementation_cannot_do_is_refused():
    with pytest.raises(ConfigError, match="knows no document masks"):
        causal.choose("cudnn", "gpu", "bfloat16", 64, True)
    with pytest.raises(ConfigError, match="needs an NVIDIA GPU, not cpu"):
        causal.choose("cudnn", causal.platform(), "bfloat16", 64, False)
    sizes = dict(dim=16, num_layers=1, num_heads=2, hidden_dim=32, gating="silu")
    with pytest.raises(ConfigError, match="attention_implementation='flash': must be one of auto, xla, cudnn, splash"):
        TransformerConfig(**sizes, attention_implementation="flash")
    with pytest.raises(ConfigError, match="cuDNN computes in bfloat16"):
        TransformerConfig(**sizes, attention_implementation="cudnn")
    with pytest.raises(ConfigError, match="only causal attention has kernels"):
        TransformerConfig(**sizes, causal=False, attention_implementation="splash")
    with pytest.raises(ConfigError, match="the few steps of a frame have no kernel"):
        DepthConfig(TransformerConfig(**sizes, attention_implementation="splash"))

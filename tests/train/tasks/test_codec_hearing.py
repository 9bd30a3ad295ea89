"""Training of a codec's encoder alone: without a reconstruction loss nothing of the decoder is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.codec.config import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.data import AudioData
from moshijax.nn.transformer import TransformerConfig
from moshijax.train.tasks.codec import GENERATOR, AudioSteps, CodecLoss, CodecTask

MODEL = MimiConfig(
    seanet=SeanetConfig(dimension=16, n_filters=4, ratios=(2, 4, 120), n_residual_layers=0),
    transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=32, context=10),
    quantizer=QuantizerConfig(dim=8, bins=16, num_codebooks=2),
)


def gradient_and_flops(loss: CodecLoss):
    task = CodecTask(MODEL, AudioSteps(AudioData("none", None, 2, 4 * 1920)), teacher_dim=5, loss=loss)
    params, codebooks = task.init(jax.random.key(0))
    rng = np.random.default_rng(0)
    batch = {
        "audio": jnp.asarray(rng.standard_normal((2, 4 * 1920)) * 0.1, jnp.float32),
        "teacher": jnp.asarray(rng.random((2, 16, 5)), jnp.float32),
        "row": jnp.arange(2),
    }

    def value(params):
        denominators = task.denominators(GENERATOR, batch)
        parts = task.loss_parts(GENERATOR, params, codebooks, batch, denominators, jax.random.key(1))
        return parts.loss, parts.sums

    compiled = jax.jit(jax.grad(value, has_aux=True)).lower(params).compile()
    gradient, sums = compiled(params)
    return gradient, sums, compiled.cost_analysis()["flops"]


def test_hearing_leaves_the_decoder_out():
    whole, sums, flops = gradient_and_flops(CodecLoss(mel_windows=(128,)))
    assert {"mel/loss", "waveform/loss", "commitment/loss", "distillation/loss"} <= set(sums)
    ear, sums, fewer = gradient_and_flops(CodecLoss(mel=0.0, waveform=0.0))
    assert {"commitment/loss", "distillation/loss"} == {name for name in sums if name.endswith("/loss")}
    assert fewer < 0.6 * flops
    assert all(np.abs(leaf).max() == 0 for leaf in jax.tree.leaves(ear["decoder"]))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(ear["encoder"]))
    assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(whole["decoder"]))

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.codec import discriminators, weight_norm
from moshijax.codec.discriminators import DiscriminatorConfig
from moshijax.errors import ConfigError
from tests.codec.small import noise

TWO = DiscriminatorConfig(windows=(32, 16), filters=3, dilations=(1, 2))
KEY = jax.random.key(0)


def convolve(x, kernel, bias, dilation=1, stride=1):
    """[T, W, I] by kernel [kt, kw, I, O], zeros around it, the long way."""
    kt, kw, _, out = kernel.shape
    pt, pw = (kt - 1) * dilation // 2, (kw - 1) // 2
    padded = np.pad(x, ((pt, pt), (pw, pw), (0, 0)))
    y = np.zeros((x.shape[0], (x.shape[1] + 2 * pw - kw) // stride + 1, out))
    for t in range(y.shape[0]):
        for w in range(y.shape[1]):
            patch = padded[t : t + kt * dilation : dilation, w * stride : w * stride + kw]
            y[t, w] = np.tensordot(patch, kernel, 3) + bias
    return y


def by_hand(params, waveform, window):
    """One discriminator of `TWO` in numpy: complex STFT, then its layers."""
    hop, hann = window // 4, np.hanning(window + 1)[:-1]
    frames = [waveform[i : i + window] * hann for i in range(0, len(waveform) - window + 1, hop)]
    spectrum = np.fft.rfft(frames) / np.sqrt(np.sum(hann**2))
    x, features = np.stack([spectrum.real, spectrum.imag], -1), []
    layers = weight_norm.fold(params)
    for i, (dilation, stride) in enumerate([(1, 1), (1, 2), (2, 2), (1, 1)]):
        x = convolve(x, *(np.asarray(layers[f"conv_{i}"][n]) for n in ("kernel", "bias")), dilation, stride)
        x = np.where(x > 0, x, 0.3 * x)
        features.append(x)
    return convolve(x, *(np.asarray(layers["conv_4"][n]) for n in ("kernel", "bias")))[..., 0], features


def test_a_discriminator_is_what_the_papers_describe():
    params, waveform = discriminators.init(TWO, KEY), noise(0, 2, 100)
    for window, said in zip(TWO.windows, discriminators.judge(TWO, params, waveform), strict=True):
        for row in range(2):
            logits, features = by_hand(params[f"window_{window}"], waveform[row], window)
            np.testing.assert_allclose(said.logits[row], logits, atol=1e-5)
            for ours, theirs in zip(said.features, features, strict=True):
                np.testing.assert_allclose(ours[row], theirs, atol=1e-5)


def test_the_published_size():
    params = discriminators.init(DiscriminatorConfig(), KEY)
    one = params["window_2048"]
    shapes = {k: v.get("kernel", v.get(weight_norm.DIRECTION)).shape for k, v in one.items()}
    assert shapes == {
        "conv_0": (3, 9, 2, 32),
        "conv_1": (3, 9, 32, 32),
        "conv_2": (3, 9, 32, 32),
        "conv_3": (3, 9, 32, 32),
        "conv_4": (3, 3, 32, 32),
        "conv_5": (3, 3, 32, 1),
    }
    assert "kernel" in one["conv_0"] and all(weight_norm.SCALE in one[f"conv_{i}"] for i in range(1, 6))
    config = DiscriminatorConfig(windows=(1024,))
    (said,) = discriminators.judge(config, discriminators.init(config, KEY), noise(1, 1, 2048))
    assert [f.shape for f in said.features] == [(1, 5, w, 32) for w in (513, 257, 129, 65, 65)]
    assert said.logits.shape == (1, 5, 65)


def test_losses_are_the_hinge_and_the_distance_of_features():
    params, real, fake = discriminators.init(TWO, KEY), noise(2, 3, 80), noise(3, 3, 80)
    both = [[discriminators.judge(TWO, params, x)[i] for x in (real, fake)] for i in range(2)]
    found = discriminators.discriminator_loss(TWO, params, real, fake)
    hinge = [np.maximum(0, 1 - r.logits) + np.maximum(0, 1 + f.logits) for r, f in both]
    np.testing.assert_allclose(found["loss"], np.mean([h.mean((1, 2)) for h in hinge], 0), rtol=1e-5)
    assert all(((found[name] >= 0) & (found[name] <= 1)).all() for name in ("real", "fake"))
    found = discriminators.generator_losses(TWO, params, real, fake)
    np.testing.assert_allclose(
        found["adversarial"], -np.mean([f.logits.mean((1, 2)) for _, f in both], 0), rtol=1e-4, atol=1e-6
    )
    maps = [[np.abs(a - b).mean((1, 2, 3)) for a, b in zip(f.features, r.features, strict=True)] for r, f in both]
    np.testing.assert_allclose(found["feature"], np.mean(maps, (0, 1)), rtol=1e-5)


def test_gradients_stay_on_their_side():
    params, real, fake = discriminators.init(TWO, KEY), jnp.asarray(noise(4, 2, 80)), jnp.asarray(noise(5, 2, 80))
    slope = jax.grad(lambda x: discriminators.discriminator_loss(TWO, params, real, x)["loss"].sum())(fake)
    assert (slope == 0).all()
    slopes = jax.grad(lambda p: sum(v.sum() for v in discriminators.generator_losses(TWO, p, real, fake).values()))(
        params
    )
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(slopes))
    slopes = jax.grad(lambda p: discriminators.discriminator_loss(TWO, p, real, fake)["loss"].sum())(params)
    assert all(np.isfinite(leaf).all() and (leaf != 0).any() for leaf in jax.tree.leaves(slopes))


@pytest.mark.parametrize("silent", ["real", "fake", "both"])
def test_silence_gives_finite_losses_and_gradients(silent):
    params = discriminators.init(TWO, KEY)
    real, fake = (jnp.asarray(noise(6, 1, 80)) * (silent not in (name, "both")) for name in ("real", "fake"))
    for name in ("adversarial", "feature"):
        slope = jax.grad(lambda x, name=name: discriminators.generator_losses(TWO, params, real, x)[name].sum())(fake)
        assert np.isfinite(slope).all()


def test_fresh_discriminators_hear_speech():
    """What they say is of the level of what they hear, through all layers."""
    config = DiscriminatorConfig(windows=(256, 64), filters=8)
    for seed in range(3):
        params = discriminators.init(config, jax.random.key(seed))
        quiet, loud = (discriminators.judge(config, params, level * noise(10, 2, 2048)) for level in (0.05, 0.1))
        for a, b in zip(quiet, loud, strict=True):
            assert 0.005 < a.logits.std() < 0.5 and all(0.005 < x.std() < 0.5 for x in a.features)
            np.testing.assert_allclose(2 * a.logits, b.logits, rtol=1e-3, atol=1e-5)


def test_refusals():
    for bad in (dict(windows=()), dict(windows=(30,)), dict(windows=(16, 16)), dict(kernel_size=(3, 8))):
        with pytest.raises(ConfigError):
            DiscriminatorConfig(**bad)


def test_weight_norm_changes_the_form_and_not_the_kernels():
    tree = {"a": {"kernel": noise(7, 3, 4, 5), "bias": noise(8, 5)}, "m": {"kernel": noise(9, 4, 5)}}
    split = weight_norm.split(tree)
    assert sorted(split["a"]) == ["bias", "kernel_direction", "kernel_scale"] and sorted(split["m"]) == ["kernel"]
    again = weight_norm.fold(split)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), again, tree)
    split["a"]["kernel_direction"] = 7 * split["a"]["kernel_direction"]  # its length says nothing
    np.testing.assert_allclose(weight_norm.fold(split)["a"]["kernel"], tree["a"]["kernel"], rtol=1e-5)
    slope = jax.grad(lambda d: weight_norm.fold({"kernel_direction": d, "kernel_scale": jnp.ones(2)})["kernel"].sum())(
        jnp.zeros((1, 1, 2))
    )
    assert np.isfinite(slope).all()


@pytest.mark.parametrize(("channels", "features", "stride", "dilation"), [(2, 4, 1, 1), (4, 4, 2, 2), (32, 32, 2, 1)])
def test_folding_frequencies_changes_nothing(channels, features, stride, dilation):
    for width in (33, 20):
        x, kernel = noise(0, 7, width, channels), noise(1, 3, 9, channels, features)
        found = discriminators.convolve(jnp.asarray(x)[None], jnp.asarray(kernel), stride, dilation)[0]
        np.testing.assert_allclose(found, convolve(x, kernel, 0.0, dilation, stride), atol=1e-4)

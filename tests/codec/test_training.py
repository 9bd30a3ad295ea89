from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import codec
from moshijax.codec import quantizer_training, training
from moshijax.codec.quantizer_training import QuantizerTraining, kmeans
from moshijax.errors import ConfigError
from tests.codec.small import SMALL, filled, noise

FRAME = SMALL.frame_size
KEY = jax.random.key(0)
quantize = jax.jit(quantizer_training.quantize, static_argnums=0)
update = jax.jit(quantizer_training.update, static_argnums=0)
PLAIN = QuantizerTraining(quantization_rate=1.0, dropout=False)


@pytest.fixture(scope="module")
def variables():
    return filled(SMALL)


@pytest.fixture(scope="module")
def forward():
    return jax.jit(training.forward, static_argnums=(0, 1))


def acoustic(variables):
    return jax.tree.map(jnp.asarray, variables["codebooks"]["quantizer"]["acoustic"])


def test_without_randomness_training_is_the_codec(variables, forward):
    waveform = noise(0, 3, 5 * FRAME)
    out = forward(SMALL, PLAIN, variables, waveform, KEY)
    codes = codec.encode(SMALL, variables, waveform)
    np.testing.assert_array_equal(out.bottleneck.codes, codes)
    np.testing.assert_allclose(out.reconstruction, codec.decode(SMALL, variables, codes), atol=1e-5)
    np.testing.assert_allclose(out.latent, codec.encode_latent(SMALL, variables, waveform), atol=1e-5)
    counts = out.bottleneck.statistics["semantic"].counts[0]
    np.testing.assert_array_equal(counts, np.bincount(np.asarray(codes[:, 0]).ravel(), minlength=16))


def test_quantization_rate_and_dropout(variables, forward):
    waveform = noise(1, 4, 5 * FRAME)
    never = QuantizerTraining(quantization_rate=0.0, dropout=False)
    out = forward(SMALL, never, variables, waveform, KEY)

    def project(mimi, x):  # the latent through the projections alone
        latent = mimi.encoder(x)
        parts = (mimi.quantizer.semantic, mimi.quantizer.acoustic)
        return mimi.decoder(sum(part.output_proj(part.input_proj(latent)) for part in parts))

    want = codec.Mimi(SMALL).apply(variables, waveform, method=project)
    np.testing.assert_allclose(out.reconstruction, want, atol=1e-5)
    np.testing.assert_array_equal(out.bottleneck.codes, codec.encode(SMALL, variables, waveform))  # still counted

    dropout = QuantizerTraining(quantization_rate=1.0, dropout=True)
    levels = set()
    for i in range(20):
        out = forward(SMALL, dropout, variables, waveform, jax.random.key(i))
        used = (np.asarray(out.bottleneck.codes) >= 0).all(axis=(0, 2))
        count = int(used.sum())
        assert used[:count].all() and count >= 2  # the semantic level and one acoustic level always take part
        levels.add(count)
    assert levels == {2, 3, 4}


def test_rows_draw_the_same_in_every_microbatch(variables, forward):
    waveform = noise(2, 4, 3 * FRAME)
    settings = QuantizerTraining(quantization_rate=0.5)
    whole = forward(SMALL, settings, variables, waveform, KEY)
    parts = [
        forward(SMALL, settings, variables, waveform[rows], KEY, jnp.asarray(rows), jnp.int32(4))
        for rows in ([2, 0], [1, 3])
    ]
    order = [2, 0, 1, 3]
    for name in ("reconstruction", "commitment", "codes"):
        *several, one = (getattr(x if name == "reconstruction" else x.bottleneck, name) for x in (*parts, whole))
        np.testing.assert_allclose(np.concatenate(several), np.asarray(one)[order], atol=1e-5, err_msg=name)
    added = jax.tree.map(jnp.add, *(part.bottleneck.statistics for part in parts))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), added, whole.bottleneck.statistics)


def test_rows_pass_through_each_part_by_a_draw_of_its_own(variables):
    """Semantic and acoustic part apart: with rates of 0.3 all four combinations have their probability."""
    rows, latent = 2000, jnp.asarray(noise(11, 2000, 1, 8))

    def inputs(rate):
        settings = QuantizerTraining(quantization_rate=rate, dropout=False)
        return jax.jit(lambda z: training.quantize(SMALL, settings, variables, z, KEY))(latent)

    coded, plain, drawn = inputs(1.0), inputs(0.0), np.asarray(inputs(0.3).decoder_input)
    semantic = {True: coded.semantic, False: plain.semantic_latent}  # one level: the first is all
    acoustic = {True: coded.decoder_input - coded.semantic, False: plain.decoder_input - plain.semantic_latent}
    shares = {
        (a, b): np.isclose(drawn, semantic[a] + acoustic[b], atol=1e-5).all(axis=(1, 2)).sum() / rows
        for a in (True, False)
        for b in (True, False)
    }
    assert sum(shares.values()) == pytest.approx(1)
    for (a, b), share in shares.items():
        assert share == pytest.approx((0.3 if a else 0.7) * (0.3 if b else 0.7), abs=0.03), (a, b)


def test_samples_are_drawn_from_all_places_alike(variables):
    """Rows and times independently."""
    z = jnp.asarray(np.arange(4, dtype=np.float32).reshape(2, 2, 1).repeat(4, axis=2))
    settings = QuantizerTraining(dropout=False, samples_per_code=100)
    out = quantize(settings, acoustic(variables), z, 3, jnp.zeros(2, bool), KEY, jnp.arange(2), 2)
    places = np.bincount(np.asarray(out.statistics.samples[0, :, 0]).astype(int), minlength=4) / 1600
    np.testing.assert_allclose(places, 0.25, atol=0.05)


def test_both_parts_replace_dead_codes_by_draws_of_their_own(variables):
    """Equal statistics, equal codebooks, and still other vectors."""
    book = {name: leaf[:1] for name, leaf in acoustic(variables).items()}
    book["cluster_usage"] = book["cluster_usage"].at[0, :8].set(1e-6)
    z = jnp.asarray(noise(12, 2, 50, 4))
    statistics = quantize(PLAIN, book, z, 1, jnp.zeros(2, bool), KEY, jnp.arange(2), 2).statistics
    statistics = statistics._replace(counts=statistics.counts.at[0, :8].set(0))
    both = {"quantizer": {"semantic": book, "acoustic": book}}
    new, metrics = training.update_codebooks(
        PLAIN, both, {"semantic": statistics, "acoustic": statistics}, KEY, PLAIN.replace_every - 1
    )
    np.testing.assert_array_equal(metrics["replaced"], [0.5, 0.5])
    one, other = (new["quantizer"][name]["embedding_sum"][0] for name in ("semantic", "acoustic"))
    np.testing.assert_array_equal(one[8:], other[8:])
    assert (one[:8] != other[:8]).any(axis=1).sum() >= 6


def test_fixed_codebooks_stay_once_they_are_there(variables, forward):
    settings = QuantizerTraining(quantization_rate=1.0, dropout=False, fixed=("semantic",))
    statistics = forward(SMALL, settings, variables, noise(7, 2, 4 * FRAME), KEY).bottleneck.statistics
    fresh = jax.tree.map(jnp.asarray, variables["codebooks"])
    new, _ = training.update_codebooks(settings, fresh, statistics, KEY, 4)
    for name, stays in (("semantic", True), ("acoustic", False)):
        same = jax.tree.map(np.array_equal, new["quantizer"][name], fresh["quantizer"][name])
        assert same["embedding_sum"] == same["cluster_usage"] == stays, name
    none_yet = jax.tree.map(jnp.zeros_like, fresh)
    new, _ = training.update_codebooks(settings, none_yet, statistics, KEY, 0)
    assert new["quantizer"]["semantic"]["initialized"][0] and new["quantizer"]["semantic"]["embedding_sum"][0].any()


def test_gradients(variables):
    waveform = jnp.asarray(noise(3, 2, 2 * FRAME))

    def loss(params):
        out = training.forward(SMALL, PLAIN, {**variables, "params": params}, waveform, KEY)
        return jnp.square(out.reconstruction - waveform).mean() + out.bottleneck.commitment.mean(), out.bottleneck.codes

    grads, _ = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    for path, grad in jax.tree_util.tree_leaves_with_path(grads):
        assert np.isfinite(grad).all() and np.abs(grad).max() > 0, jax.tree_util.keystr(path)


def test_commitment_gradient_moves_latents_towards_their_codes(variables):
    book, z = acoustic(variables), jnp.asarray(noise(4, 2, 5, 4))
    no = jnp.zeros(2, bool)

    def distance(z):
        return quantize(PLAIN, book, z, 3, no, KEY, jnp.arange(2), 2).commitment.sum()

    before, slope = jax.jit(jax.value_and_grad(distance))(z)
    assert distance(z - 0.01 * slope) < before


def test_update_is_the_moving_average(variables):
    book, z = acoustic(variables), jnp.asarray(noise(5, 2, 30, 4))
    out = quantize(PLAIN, book, z, 2, jnp.zeros(2, bool), KEY, jnp.arange(2), 2)
    new, _ = update(PLAIN, book, out.statistics, KEY, 0)
    codes, vectors = np.asarray(out.codes[:, 0]).ravel(), np.asarray(z).reshape(-1, 4)
    for code in range(16):
        chosen = vectors[codes == code]
        np.testing.assert_allclose(
            new["cluster_usage"][0, code], 0.99 * book["cluster_usage"][0, code] + 0.01 * len(chosen), rtol=1e-5
        )
        want = 0.99 * book["embedding_sum"][0, code] + 0.01 * chosen.sum(0)
        np.testing.assert_allclose(new["embedding_sum"][0, code], want, atol=1e-5)
    np.testing.assert_array_equal(new["embedding_sum"][2], book["embedding_sum"][2])  # this level took no part


def test_levels_get_their_codebooks_one_by_one():
    rng = np.random.RandomState(0)
    centres = 10 * rng.standard_normal((16, 4))
    z = jnp.asarray((centres[rng.randint(16, size=(4, 200))] + 0.1 * rng.standard_normal((4, 200, 4))), jnp.float32)
    book = acoustic(codec.init(SMALL, KEY))
    assert not book["initialized"].any()
    distances = []
    no, rows = jnp.zeros(4, bool), jnp.arange(4)
    for level in range(3):
        out = quantize(PLAIN, book, z, 3, no, KEY, rows, 4)
        distances.append(float(out.commitment.mean() * out.active_levels))
        book, metrics = update(PLAIN, book, out.statistics, KEY, 0)
        assert book["initialized"].tolist() == [True] * (level + 1) + [False] * (2 - level)
        assert 0 < metrics["usage_entropy"][level] <= 1
    spread = float(jnp.square(z - z.mean((0, 1))).mean())
    assert distances[0] == 0 and 0 < distances[1] < 0.2 * spread  # k-means found most of the 16 clusters
    for level in (1, 2, 3):  # each level leaves less than the one before
        distances.append(float(quantize(PLAIN, book, z, level, no, KEY, rows, 4).commitment.mean() * level))
    first, second, third = np.diff([0, *distances[3:]])
    assert first > second > third


def test_dead_codes_restart_from_the_batch(variables):
    book, z = acoustic(variables), jnp.asarray(noise(6, 2, 50, 4))
    book["embedding_sum"] = book["embedding_sum"].at[0, 3].set(1e6)  # far from everything
    out = quantize(PLAIN, book, z, 3, jnp.zeros(2, bool), KEY, jnp.arange(2), 2)
    book["cluster_usage"] = book["cluster_usage"].at[0, 3].set(1e-6)
    for step, replaced in ((3, False), (4, True)):
        new, metrics = update(PLAIN, book, out.statistics, KEY, step)
        assert (float(metrics["replaced"][0]) > 0) is replaced
    vector = np.asarray(new["embedding_sum"][0, 3] / new["cluster_usage"][0, 3])
    assert np.abs(np.asarray(z).reshape(-1, 4) - vector).max(1).min() < 1e-4
    np.testing.assert_allclose(new["cluster_usage"][0, 3], new["cluster_usage"][0].sum() / 16, rtol=0.1)


def test_kmeans():
    rng = np.random.RandomState(0)
    centres = np.array([[0.0, 0], [10, 0], [0, 10]])
    vectors = jnp.asarray(np.repeat(centres, 20, 0) + 0.1 * rng.standard_normal((60, 2)), jnp.float32)
    counts, found = jax.jit(kmeans, static_argnums=(1, 2))(vectors, 3, 20, jax.random.key(1))
    assert sorted(np.asarray(counts)) == [20, 20, 20]
    assert all(np.abs(np.asarray(found) - centre).max(1).min() < 0.2 for centre in centres)


def test_kmeans_gives_an_empty_cluster_another_vector():
    """Most of the vectors are silence, so that most of the first centroids are one and the same."""
    far = jnp.asarray([[10.0, 0], [0, 10], [-10, 0], [0, -10]])
    vectors = jnp.concatenate([jnp.zeros((56, 2)), far])
    counts, found = jax.jit(kmeans, static_argnums=(1, 2))(vectors, 5, 100, jax.random.key(0))
    assert sorted(np.asarray(counts)) == [1, 1, 1, 1, 56]
    assert {tuple(row) for row in np.asarray(found)} == {(0, 0), *(tuple(row) for row in np.asarray(far))}


def test_teacher_head(variables):
    trained = training.init(SMALL, KEY, teacher_dim=5)
    assert trained["params"]["teacher_projection"]["kernel"].shape == (5, 8)
    assert "teacher_projection" not in training.codec_variables(trained)["params"]
    estimate = training.teacher_estimate(trained, jnp.ones((2, 3, 8)))
    assert estimate.shape == (2, 3, 5)
    codec.encode(SMALL, trained, noise(0, 1, FRAME))  # the side head is in nobody's way


def test_codebooks_keep_their_structure(variables, forward):
    out = forward(SMALL, PLAIN, variables, noise(7, 2, 4 * FRAME), KEY)
    new, metrics = jax.jit(training.update_codebooks, static_argnums=0)(
        PLAIN, variables["codebooks"], out.bottleneck.statistics, KEY, 0
    )
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, variables["codebooks"])
    assert metrics["usage_entropy"].shape == metrics["replaced"].shape == (4,)
    assert quantizer_training.USAGE_AT_LEAST > 0


@pytest.mark.parametrize(
    "bad", [dict(decay=1.0), dict(quantization_rate=1.5), dict(samples_per_code=0), dict(fixed=("decoder",))]
)
def test_refusals(bad):
    with pytest.raises(ConfigError):
        QuantizerTraining(**bad)


def test_dropped_levels_do_not_spoil_the_start_of_the_next_codebook(variables):
    """A batch that uses one level still shows the third one what all levels before it leave."""
    book, z = acoustic(variables), jnp.asarray(noise(8, 2, 50, 4))
    no, rows = jnp.zeros(2, bool), jnp.arange(2)
    all_of_them, one = (quantize(PLAIN, book, z, levels, no, KEY, rows, 2) for levels in (3, 1))
    np.testing.assert_array_equal(one.statistics.samples, all_of_them.statistics.samples)
    assert (one.statistics.counts[1:] == 0).all() and (one.codes[:, 1:] == -1).all()
    np.testing.assert_allclose(one.quantized, quantize(PLAIN, book, z, 1, no, KEY, rows, 2).quantized)


def test_dropped_levels_may_learn_on(variables):
    """Their codebooks move as if no level had been dropped; what is decoded and committed to is the same."""
    book, z = acoustic(variables), jnp.asarray(noise(9, 2, 50, 4))
    settings = QuantizerTraining(quantization_rate=1.0, dropped_levels_learn=True)
    no, rows = jnp.zeros(2, bool), jnp.arange(2)
    learning, resting, whole = (
        quantize(s, book, z, levels, no, KEY, rows, 2) for s, levels in ((settings, 1), (PLAIN, 1), (PLAIN, 3))
    )
    jax.tree.map(np.testing.assert_array_equal, learning.statistics, whole.statistics)
    jax.tree.map(np.testing.assert_array_equal, learning[:-1], resting[:-1])
    new, _ = update(settings, book, learning.statistics, KEY, 0)
    assert (new["cluster_usage"] != book["cluster_usage"]).any(axis=1).all()
    assert (update(PLAIN, book, resting.statistics, KEY, 0)[0]["cluster_usage"][1:] == book["cluster_usage"][1:]).all()


def test_the_latent_is_all_that_the_middle_needs(variables, forward):
    settings = QuantizerTraining(quantization_rate=0.5)
    out = forward(SMALL, settings, variables, noise(10, 3, 4 * FRAME), KEY)
    again = training.quantize(SMALL, settings, variables, out.latent, KEY)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), again, out.bottleneck)


def test_weight_norm_is_put_on_and_taken_off(variables):
    params = variables["params"]
    normalised = training.normalise_weights(params)
    assert jax.tree.structure(normalised) != jax.tree.structure(params)
    for given in (params, normalised):
        plain = training.plain_weights(given)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, params)

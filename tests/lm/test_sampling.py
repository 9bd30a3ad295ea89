from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.errors import ConfigError
from moshijax.lm.sampling import Sampling, row_noise, sample

V = 12
LOGITS = jax.random.normal(jax.random.key(0), (V,)) * 2


def draw(count, temperature=1.0, top_k=0, limit=8, logits=LOGITS, row=1):
    """Tokens of the steps 0 .. count-1 of one row of a batch that has the other seeds beside it."""
    steps = jnp.arange(count)
    seed = jnp.broadcast_to(jnp.array([3, 5], jnp.uint32), (count, 2))
    temperature, top_k = jnp.full(count, temperature, jnp.float32), jnp.full(count, top_k)
    return np.asarray(
        jax.jit(sample, static_argnums=(5, 6))(
            jnp.broadcast_to(logits, (count, V)), temperature, top_k, seed, steps, row, limit
        )
    )


@pytest.mark.parametrize(("temperature", "top_k"), [(1.0, 0), (0.5, 0), (1.0, 3), (2.0, 8)])
def test_frequencies_follow_the_softmax(temperature, top_k):
    count = 20000
    got = np.bincount(draw(count, temperature, top_k), minlength=V) / count
    logits = np.asarray(LOGITS, np.float64) / temperature
    if top_k:
        logits[np.argsort(-logits)[top_k:]] = -np.inf
    want = np.exp(logits) / np.exp(logits).sum()
    assert (got[want == 0] == 0).all()
    assert np.abs(got - want).max() < 4 * np.sqrt(0.25 / count)


def test_temperature_zero_and_top_1_are_greedy():
    best = int(LOGITS.argmax())
    assert (draw(50, temperature=0.0) == best).all()
    assert (draw(50, top_k=1) == best).all()
    assert len(set(draw(50))) > 1


def test_ties_are_cut_to_exactly_top_k():
    got = draw(500, top_k=3, logits=jnp.zeros(V))
    assert set(got.tolist()) == {0, 1, 2}


def test_rows_of_one_batch_have_parameters_of_their_own():
    n = 400
    logits = jnp.broadcast_to(LOGITS, (3 * n, V))
    temperature = jnp.repeat(jnp.array([0.0, 1.0, 1.0]), n)
    top_k = jnp.repeat(jnp.array([0, 2, 0]), n)
    seed = jnp.zeros((3 * n, 2), jnp.uint32)
    got = np.asarray(sample(logits, temperature, top_k, seed, jnp.arange(3 * n), 0, 8)).reshape(3, n)
    assert [len(set(tokens)) for tokens in got.tolist()][:2] == [1, 2] and len(set(got[2].tolist())) > 3


def test_a_draw_is_the_largest_of_scaled_logits_and_noise():
    n, random = 300, np.random.RandomState(0)
    logits = random.standard_normal((n, V)).astype(np.float32)
    temperature, top_k = random.choice([0, 0.5, 2], n).astype(np.float32), random.randint(0, 9, n)
    seed, count = random.randint(0, 99, (n, 2)).astype(np.uint32), np.arange(n)
    got = sample(logits, temperature, top_k, seed, count, 3, 8)
    scaled = logits / np.where(temperature > 0, temperature, 1)[:, None]
    rank = np.argsort(np.argsort(-scaled, axis=1), axis=1)
    scores = scaled + np.where(temperature > 0, 1, 0)[:, None] * np.asarray(row_noise(seed, count, 3, 0, V))
    scores[(rank >= top_k[:, None]) & (top_k[:, None] > 0)] = -np.inf
    np.testing.assert_array_equal(got, scores.argmax(axis=1))


def test_noise_is_a_function_of_seed_count_row_and_purpose_alone():
    seeds = jnp.array([[1, 2], [1, 2], [2, 1], [1, 3]], jnp.uint32)
    counts = jnp.array([7, 8, 7, 7])
    base = row_noise(seeds, counts, 1, 0, 5)
    assert len({tuple(row) for row in np.asarray(base).tolist()}) == 4
    order = jnp.array([2, 0, 3, 1])
    np.testing.assert_array_equal(row_noise(seeds[order], counts[order], 1, 0, 5), base[order])
    np.testing.assert_array_equal(row_noise(seeds[:1], counts[:1], 1, 0, 5), base[:1])
    assert np.abs(row_noise(seeds, counts, 2, 0, 5) - base).min() > 0
    assert np.abs(row_noise(seeds, counts, 1, 1, 5) - base).min() > 0
    # The documented key, so that it never changes unnoticed.
    key = jax.random.wrap_key_data(seeds[0], impl="threefry2x32")
    for part in (7, 1, 0):
        key = jax.random.fold_in(key, part)
    np.testing.assert_array_equal(jax.random.gumbel(key, (5,)), base[0])


def test_defaults_are_those_of_the_released_moshi():
    rows = {name: value.tolist() for name, value in Sampling().rows(1).items()}
    assert rows.pop("temperature") == [pytest.approx(0.8)] and rows.pop("text_temperature") == [pytest.approx(0.7)]
    assert rows == {"top_k": [250], "text_top_k": [25], "pad_bonus": [0.0], "seed": [[0, 0]]}


def test_parameters_per_row():
    rows = Sampling(temperature=[0.5, 1.0], top_k=3, seed=9).rows(2)
    assert rows["temperature"].tolist() == [0.5, 1.0] and rows["top_k"].tolist() == [3, 3]
    assert rows["seed"].tolist() == [[9, 0], [9, 1]]
    assert Sampling(seed=[4, 5]).rows(2)["seed"].tolist() == [[0, 4], [0, 5]]
    assert Sampling(seed=[[1, 4], [2, 5]]).rows(2)["seed"].tolist() == [[1, 4], [2, 5]]


@pytest.mark.parametrize(
    ("sampling", "message"),
    [
        (Sampling(temperature=-1.0), "temperature=-1.0"),
        (Sampling(top_k=300), "top_k=300: must be at most top_k_limit=250"),
        (Sampling(text_top_k=[1, 2, 3]), r"text_top_k of shape \(3,\)"),
        (Sampling(seed=np.zeros((2, 3))), "seed of shape"),
    ],
)
def test_bad_parameters(sampling, message):
    with pytest.raises(ConfigError, match=message):
        sampling.rows(2)

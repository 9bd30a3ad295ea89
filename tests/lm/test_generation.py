from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.lm.sampling import row_noise
from moshijax.tokens import PAD, UNGENERATED
from tests.lm.models import codes, params, small

CONFIG = small()
INTEGERS = small(temporal=dataclasses.replace(CONFIG.temporal, cache_dtype="int8"))
CACHES = pytest.mark.parametrize("config", [CONFIG, INTEGERS], ids=["computed", "int8"])
DELAY = CONFIG.layout.max_delay
CALLS = 20
GREEDY = lm.Sampling.greedy()
SAMPLED = lm.Sampling(temperature=1.0, text_temperature=1.0, top_k=7, text_top_k=0, seed=11)


@functools.cache
def stepper(config):
    return jax.jit(functools.partial(lm.generate_step, config))


def run(config, tree, state, given, sampling, force=None, active=None):
    """`given [calls, B, G]`; returns the state and `[calls, B, M]`."""
    columns, rows = [], sampling.rows(given.shape[1])
    for n in range(given.shape[0]):
        arguments = [None if a is None else a[n] for a in (force, active)]
        state, out = stepper(config)(tree, state, given[n], rows, None, *arguments)
        columns.append(np.asarray(out))
    return state, np.stack(columns)


def user(config, batch, calls=CALLS, seed=3):
    shape = (calls, batch, len(config.layout.given_rows))
    return np.random.RandomState(seed).randint(0, config.card, shape).astype(np.int32)


def changed(given, call):
    """Other codes in one call."""
    given = given.copy()
    given[call] = (given[call] + 1) % CONFIG.card
    return given


def grid_of(config, columns, given):
    """What the training forward should be fed: returned frames, and given codes from the second call on."""
    delay = config.layout.max_delay
    frames = columns[delay:].transpose(1, 2, 0)
    count = min(frames.shape[2], given.shape[0] - 1)
    return np.concatenate([frames[..., :count], given[1 : 1 + count].transpose(1, 2, 0)], axis=1)


@pytest.mark.parametrize(
    "layout",
    [
        CONFIG.layout,
        lm.layouts.recognition(2),
        lm.layouts.recognition(2, text_delay=3),
        lm.layouts.synthesis(2, 1, 3),
        lm.layouts.dialogue(2, 1, score_user=True),
    ],
)
def test_greedy_generation_is_the_training_forward(layout):
    """Every returned token is the most likely one under the training forward, beyond the window too."""
    config = small(layout)
    assert CALLS > 2 * config.temporal.context
    tree, given = params(config, stacked=False), user(config, 2)
    state = lm.init_generation(config, tree, 2)
    _, columns = run(config, tree, state, given, GREEDY)
    delay = layout.max_delay
    assert (columns[:delay] == UNGENERATED).all() and (columns[delay:] >= 0).all()
    frames = CALLS - delay - 1
    grid = grid_of(config, columns, given)[:, :, :frames]
    out = jax.jit(functools.partial(lm.forward, config))(tree, grid)
    generated = len(layout.model_rows) - 1
    text, audio = (np.asarray(logits).argmax(-1) for logits in (out.text_logits, out.logits))
    audio = audio[:, :generated]
    np.testing.assert_array_equal(np.where(out.text_mask, text, grid[:, :1]), grid[:, :1])
    kept = np.asarray(out.mask)[:, :generated]
    np.testing.assert_array_equal(np.where(kept, audio, 0), np.where(kept, grid[:, 1 : 1 + generated], 0))


def test_codes_of_the_first_call_are_ignored():
    tree, given = params(CONFIG, stacked=False), user(CONFIG, 1)
    start = lm.init_generation(CONFIG, tree, 1)
    _, a = run(CONFIG, tree, start, given, GREEDY)
    _, b = run(CONFIG, tree, start, changed(given, 0), GREEDY)
    _, c = run(CONFIG, tree, start, changed(given, 1), GREEDY)
    np.testing.assert_array_equal(a, b)
    assert (a != c).any()


def test_both_layouts_generate_the_same():
    given = user(CONFIG, 2, 5)
    start = lm.init_generation(CONFIG, None, 2)
    _, a = run(CONFIG, params(CONFIG, stacked=False), start, given, GREEDY)
    _, b = run(CONFIG, params(CONFIG, stacked=True), start, given, GREEDY)
    np.testing.assert_array_equal(a, b)


@CACHES
def test_a_row_depends_on_its_seed_and_inputs_alone(config):
    """Not on its slot, its neighbours, or when it started."""
    tree, given = params(config, stacked=False), user(config, 3)
    seeds = np.array([[1, 1], [2, 2], [3, 3]])
    sampling = lm.Sampling(temperature=1.0, text_temperature=1.0, top_k=7, text_top_k=0, seed=seeds)
    start = lm.init_generation(config, tree, 3)
    _, base = run(config, tree, start, given, sampling)
    assert len({column.tobytes() for column in base.transpose(1, 0, 2)}) == 3
    order = np.array([2, 0, 1])
    sampling = lm.Sampling(temperature=1.0, text_temperature=1.0, top_k=7, text_top_k=0, seed=seeds[order])
    _, moved = run(config, tree, start, given[:, order], sampling)
    np.testing.assert_array_equal(moved, base[:, order])
    # Row 1 again, started late in slot 0, beside strangers.
    state, _ = run(config, tree, start, user(config, 3, 4, seed=8), SAMPLED)
    sampling = lm.Sampling(temperature=1.0, text_temperature=1.0, top_k=7, text_top_k=0, seed=seeds[[1, 1, 1]])
    state = lm.reset_generation(config, state, np.array([True, False, False]))
    other = user(config, 3, seed=9)
    other[:, 0] = given[:, 1]
    _, late = run(config, tree, state, other, sampling)
    np.testing.assert_array_equal(late[:, 0], base[:, 1])


def sampled_by_hand(logits, temperature, top_k, noise):
    """The documented rule: the largest of scaled logit plus noise among the `top_k` most likely; 0 is off."""
    best = []
    for row, scores in enumerate(np.asarray(logits, np.float64)):
        kept = np.argsort(-scores, kind="stable")[: top_k[row] or None]
        hot = temperature[row] > 0
        score = scores[kept] / temperature[row] + np.asarray(noise)[row][kept] if hot else scores[kept]
        best.append(kept[score.argmax()])
    return best


def test_text_and_audio_are_sampled_with_parameters_of_their_own():
    """In every row of the batch: temperatures, cuts, seeds, and the count of its steps."""
    batch, calls = 12, 4
    config = small(lm.layouts.dialogue(2, 0))  # without delays a call returns what it sampled
    tree, given = params(config, stacked=False), user(config, batch, calls)
    cycle = np.arange(batch)
    sampling = lm.Sampling(
        temperature=np.array([0.0, 0.5, 3.0])[cycle % 3],
        text_temperature=np.array([2.0, 0.0, 4.0, 1.0])[cycle % 4],
        top_k=np.array([0, 2, 9, 4, 15])[cycle % 5],
        text_top_k=np.array([6, 3])[cycle % 2],
        pad_bonus=np.array([0.0, -3.0, 4.0])[cycle % 3],
        seed=7,
    )
    arrays, state = sampling.rows(batch), lm.init_generation(config, tree, batch)
    step = jax.jit(functools.partial(lm.generation.step, config))
    plain = dataclasses.replace(sampling, pad_bonus=0.0).rows(batch)
    for count in range(calls):
        _, without = step(tree, state, given[count], plain)
        state, out = step(tree, state, given[count], arrays)
        bonus = np.asarray(out.text_logits_BV - without.text_logits_BV)
        np.testing.assert_allclose(bonus[:, PAD], sampling.pad_bonus, atol=1e-5)
        assert (np.delete(bonus, PAD, axis=1) == 0).all()
        counts = jnp.full(batch, count)
        for row, logits in enumerate((out.text_logits_BV, *jnp.moveaxis(out.logits_BQV, 1, 0))):
            noise = row_noise(arrays["seed"], counts, row, 0, logits.shape[-1])
            own = (sampling.temperature, sampling.top_k) if row else (sampling.text_temperature, sampling.text_top_k)
            np.testing.assert_array_equal(out.out_BK[:, row], sampled_by_hand(logits, *own, noise), err_msg=str(row))


def test_the_same_seed_twice_and_another_seed():
    tree, given = params(CONFIG, stacked=False), user(CONFIG, 2)
    start = lm.init_generation(CONFIG, tree, 2)
    _, a = run(CONFIG, tree, start, given, SAMPLED)
    _, b = run(CONFIG, tree, start, given, SAMPLED)
    np.testing.assert_array_equal(a, b)
    _, c = run(CONFIG, tree, start, given, dataclasses.replace(SAMPLED, seed=12))
    assert (a != c).any()


@CACHES
def test_frozen_rows(config):
    """A frozen row gives nothing, keeps its state, and continues as if nothing had happened."""
    tree, given = params(config, stacked=False), user(config, 2)
    start = lm.init_generation(config, tree, 2)
    _, base = run(config, tree, start, given, SAMPLED)
    pattern = np.array([True, True, False, True, False, False, True] * 4)
    active = np.stack([np.ones_like(pattern), pattern], axis=1)
    spread = np.cumsum(pattern) - 1
    mixed = np.stack([user(config, 2, len(pattern), seed=5)[:, 0], given[spread % CALLS, 1]], axis=1)
    # What a frozen row is given must not matter.
    mixed[~pattern, 1] = 0
    state, columns = run(config, tree, start, mixed, SAMPLED, active=active)
    count = min(pattern.sum(), CALLS)
    np.testing.assert_array_equal(columns[pattern, 1][:count], base[:count, 1])
    assert (columns[~pattern, 1] == UNGENERATED).all()
    assert state["offset"].tolist() == [len(pattern), pattern.sum()]
    frozen, _ = stepper(config)(tree, state, given[0], SAMPLED.rows(2), None, None, np.array([True, False]))
    jax.tree.map(lambda a, b: np.testing.assert_array_equal(a[1], b[1]), frozen, state)


@CACHES
def test_reset_rows_start_afresh(config):
    tree, given = params(config, stacked=False), user(config, 2)
    start = lm.init_generation(config, tree, 2)
    _, base = run(config, tree, start, given, SAMPLED)
    state, _ = run(config, tree, start, user(config, 2, 13, seed=6), SAMPLED)
    state = lm.reset_generation(config, state, np.array([False, True]))
    _, again = run(config, tree, state, given, SAMPLED)
    np.testing.assert_array_equal(again[:, 1], base[:, 1])
    assert (again[:, 0] != UNGENERATED).all()


@CACHES
def test_a_row_moves_to_another_slot(config):
    """Rows are data: cut out of one state and put into another batch."""
    tree, given = params(config, stacked=False), user(config, 2)
    start = lm.init_generation(config, tree, 2)
    _, base = run(config, tree, start, given, SAMPLED)
    half, _ = run(config, tree, start, given[:9], SAMPLED)
    other, _ = run(config, tree, start, user(config, 2, 4, seed=7), SAMPLED)
    moved = jax.tree.map(lambda into, out: np.concatenate([out[1:2], into[1:]]), other, half)
    later = np.stack([given[9:, 1], given[9:, 0]], axis=1)
    its_own = dataclasses.replace(SAMPLED, seed=[[11, 1], [11, 0]])
    _, rest = run(config, tree, moved, later, its_own)
    np.testing.assert_array_equal(rest[:, 0], base[9:, 1])


def test_forced_tokens():
    tree, given = params(CONFIG, stacked=False), user(CONFIG, 2)
    start = lm.init_generation(CONFIG, tree, 2)
    _, free = run(CONFIG, tree, start, given, GREEDY)
    rows = len(CONFIG.layout.model_rows)
    nothing = np.full((CALLS, 2, rows), UNGENERATED)
    _, same = run(CONFIG, tree, start, given, GREEDY, nothing)
    np.testing.assert_array_equal(same, free)
    # Text of row 0 from call 3 on, an acoustic code of row 1 in call 5.
    force = nothing.copy()
    force[2:, 0, 0] = 7
    force[4, 1, 2] = 5
    _, forced = run(CONFIG, tree, start, given, GREEDY, force)
    assert (forced[DELAY + 2 :, 0, 0] == 7).all()
    # (the delayed acoustic code of the same call already follows the forced text)
    np.testing.assert_array_equal(forced[: DELAY + 2, 0, :2], free[: DELAY + 2, 0, :2])
    # In call n the code of a row with delay d has index n - 1 - d, and is returned max_delay - d calls later.
    delay = CONFIG.layout.delays[2]
    assert forced[4 + DELAY - delay, 1, 2] == 5
    assert (forced[:, 0] != free[:, 0]).any()
    # Everything forced gives the forced grid back, shifted by the delays.
    grid = codes(CONFIG, 2, CALLS, seed=4)[:, :rows]
    shifted = lm.delays.delay(grid, CONFIG.layout.delays[:rows], (0,) * rows)
    _, dictated = run(CONFIG, tree, start, given, GREEDY, shifted.transpose(2, 0, 1))
    np.testing.assert_array_equal(dictated[DELAY:], np.asarray(grid).transpose(2, 0, 1)[: CALLS - DELAY])


def test_pad_bonus():
    tree, given = params(CONFIG, stacked=False), user(CONFIG, 2)
    sampling = lm.Sampling(pad_bonus=[0.0, 1e3], seed=1)
    _, columns = run(CONFIG, tree, lm.init_generation(CONFIG, tree, 2), given, sampling)
    assert (columns[DELAY:, 1, 0] == PAD).all() and (columns[DELAY:, 0, 0] != PAD).any()


def test_state_has_one_shape_and_leading_rows():
    tree, given = params(CONFIG, stacked=False), user(CONFIG, 3)
    state = lm.init_generation(CONFIG, tree, 3)
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {3}
    after, _ = stepper(CONFIG)(tree, state, given[0], SAMPLED.rows(3))
    assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)
    assert not [leaf for leaf in jax.tree.leaves(state) if not isinstance(leaf, jax.Array)]


def test_one_compilation_and_donated_state():
    tree, given = params(CONFIG, stacked=False), user(CONFIG, 1)
    step = jax.jit(functools.partial(lm.generate_step, CONFIG), donate_argnums=1)
    state = lm.init_generation(CONFIG, tree, 1)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    compiled = step.lower(tree, state, given[0], SAMPLED.rows(1)).compile()
    assert compiled.memory_analysis().alias_size_in_bytes == size
    for n in range(5):
        state, _ = step(tree, state, given[n], SAMPLED.rows(1))
    assert step._cache_size() == 1


def test_bad_calls():
    with pytest.raises(ConfigError, match="context is None"):
        lm.init_generation(small(context=None), None, 1)
    state, rows = lm.init_generation(CONFIG, None, 2), GREEDY.rows(2)
    given = jnp.zeros((2, 2), jnp.int32)
    with pytest.raises(ConfigError, match=r"given tokens of shape \(2, 1\): must be \[2, 2\]"):
        lm.generate_step(CONFIG, params(CONFIG), state, given[:, :1], rows)
    with pytest.raises(ConfigError, match=r"forced tokens of shape \(2, 1\): must be \[2, 3\]"):
        lm.generate_step(CONFIG, params(CONFIG), state, given, rows, None, given[:, :1])
    with pytest.raises(ConfigError, match="guided=True"):
        lm.generate_step(CONFIG, params(CONFIG), state, given, rows, lm.Guidance(2.0).rows(2))

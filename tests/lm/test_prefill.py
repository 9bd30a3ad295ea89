"""A prompt in one pass leaves the state that stepping through it leaves."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.tokens import UNGENERATED, ZERO
from tests.lm.models import params, small

STEPS, AFTER = 23, 5
CONDITIONED = small(
    lm.layouts.dialogue(2, acoustic_delay=3),
    conditioners=(lm.LookupConditioner("mood", 3, 4), lm.TensorConditioner("voice", 5, length=3)),
    temporal=dataclasses.replace(small().temporal, cross_attention=True),
    cross_positions=0.5,
)
CASES = {
    "dialogue": (small(), False),
    "no_delay": (small(lm.layouts.dialogue(2, acoustic_delay=0)), False),
    "synthesis": (small(lm.layouts.synthesis(2, 1, 3), demux_text=True), False),
    "text_delay": (small(lm.layouts.recognition(2, text_delay=3)), False),
    "guided": (CONDITIONED, True),
}
#: Chunk sizes of each row, and how many columns count in each; rows differ in both.
CHUNKS = {
    "whole": [(STEPS, None)],
    "ones": [(1, None)] * STEPS,
    "uneven": [(7, None), (2, None), (14, None)],
    "padded": [(8, [8, 3]), (8, [0, 8]), (8, [7, 8]), (8, [8, 4])],
}


def columns(config, batch, seed=0):
    """What STEPS steps take in: text with holes, codes, given codes."""
    random = np.random.RandomState(seed)
    grid = random.randint(0, config.card, (batch, config.layout.num_streams, STEPS))
    largest = (config.text_card + 1) * 4 if config.demux_text else config.text_card
    grid[:, 0] = random.randint(0, largest, (batch, STEPS))
    grid[:, 0, ::4] = ZERO
    return grid.astype(np.int32)


def started(config, tree, guided, batch=2):
    conditions = {"mood": np.array([1, 2])} if config.conditioners else None
    return lm.init_generation(config, tree, batch, conditions=conditions, guided=guided)


@functools.cache
def programs(config):
    step = jax.jit(functools.partial(lm.generate_step, config))
    return step, jax.jit(functools.partial(lm.prefill, config))


def stepped(config, tree, state, grid, sampling, guidance):
    rows = len(config.layout.model_rows)
    for t in range(grid.shape[2]):
        given, force = grid[:, rows:, t], grid[:, :rows, t]
        state, _ = programs(config)[0](tree, state, given, sampling, guidance, force)
    return state


@pytest.mark.parametrize("case", CASES)
def test_any_chunks_equal_steps(case):
    config, guided = CASES[case]
    tree, grid = params(config, stacked=False), columns(config, 2)
    guidance = lm.Guidance([1.5, 2.0], [0, 9], [True, False]).rows(2) if guided else None
    choice = {
        "greedy": lm.Sampling.greedy().rows(2),
        "sampled": lm.Sampling(1.0, 1.0, 7, 0, seed=3).rows(2),
    }
    step, prefill = programs(config)
    start = started(config, tree, guided)
    want = stepped(config, tree, start, grid, choice["greedy"], guidance)
    rows = len(config.layout.model_rows)
    later = columns(config, 2, seed=1)[:, rows:, :AFTER]
    free = np.full((2, rows), UNGENERATED, np.int32)
    for name, chunks in CHUNKS.items():
        state, at = start, np.zeros(2, int)
        for size, lengths in chunks:
            counts = np.full(2, size) if lengths is None else np.array(lengths)
            chunk = np.full((2, grid.shape[1], size), 1, np.int32)
            for b in range(2):
                chunk[b, :, : counts[b]] = grid[b, :, at[b] : at[b] + counts[b]]
            state = prefill(tree, state, chunk, None if lengths is None else jnp.asarray(counts), guidance)
            at += counts
        assert (at == STEPS).all()
        for part in ("tokens", "offset"):
            np.testing.assert_array_equal(state[part], want[part], err_msg=f"{part} after chunks {name}")
        same = functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5, err_msg=name)
        jax.tree.map(same, state, want)
        for sampling in choice.values():
            a, b = state, want
            for t in range(AFTER):
                a, got = step(tree, a, later[:, :, t], sampling, guidance, free)
                b, expected = step(tree, b, later[:, :, t], sampling, guidance, free)
                np.testing.assert_array_equal(got, expected, err_msg=f"{name}, {t + 1} steps after the prompt")


@pytest.mark.parametrize("chunks", ["whole", "uneven", "padded"])
def test_a_ring_of_integers_after_any_chunks(chunks):
    """As after steps; a value that lies between two integers may be rounded the other way."""
    config = small(temporal=dataclasses.replace(small().temporal, cache_dtype="int8"))
    tree, grid, greedy = params(config, stacked=False), columns(config, 2), lm.Sampling.greedy().rows(2)
    start = started(config, tree, False)
    want = stepped(config, tree, start, grid, greedy, None)
    state, at = start, np.zeros(2, int)
    for size, lengths in CHUNKS[chunks]:
        counts = np.full(2, size) if lengths is None else np.array(lengths)
        chunk = np.full((2, grid.shape[1], size), 1, np.int32)
        for b in range(2):
            chunk[b, :, : counts[b]] = grid[b, :, at[b] : at[b] + counts[b]]
        state = programs(config)[1](tree, state, chunk, None if lengths is None else jnp.asarray(counts))
        at += counts
    np.testing.assert_array_equal(state["tokens"], want["tokens"])
    leaves = list(zip(jax.tree.leaves(state["temporal"]), jax.tree.leaves(want["temporal"]), strict=True))
    assert {str(a.dtype) for a, _ in leaves} == {"int8", "float32", "int32"}
    for a, b in leaves:
        if a.dtype == jnp.int8:
            apart = np.abs(np.asarray(a, int) - np.asarray(b, int))
            assert apart.max() <= 1 and np.mean(apart) < 0.01
        else:
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6)


def test_chunks_and_steps_alternate():
    config, tree = small(), params(small(), stacked=False)
    grid, greedy = columns(config, 2), lm.Sampling.greedy().rows(2)
    start = started(config, tree, False)
    want = stepped(config, tree, start, grid, greedy, None)
    state = stepped(config, tree, start, grid[:, :, :3], greedy, None)
    state = programs(config)[1](tree, state, grid[:, :, 3:10])
    state = stepped(config, tree, state, grid[:, :, 10:12], greedy, None)
    state = programs(config)[1](tree, state, grid[:, :, 12:])
    np.testing.assert_array_equal(state["tokens"], want["tokens"])
    jax.tree.map(functools.partial(np.testing.assert_allclose, atol=1e-5, rtol=1e-5), state, want)


def test_bad_prompts():
    config = small()
    tree, state = params(config, stacked=False), lm.init_generation(config, None, 2)
    with pytest.raises(ConfigError, match=r"prompt columns of shape \(2, 4, 3\): must be \[2, 5, T\]"):
        lm.prefill(config, tree, state, np.zeros((2, 4, 3), np.int32))
    with pytest.raises(ConfigError, match="guided=True"):
        lm.prefill(config, tree, state, np.zeros((2, 5, 3), np.int32), None, lm.Guidance(2.0).rows(2))

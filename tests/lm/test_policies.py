"""The policies as pure functions; the state machine of synthesis against the reference's own, token for token."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.lm import policies
from moshijax.tokens import EOS, UNGENERATED, ZERO
from moshijax.weights.formats.lm_config import lm_config
from tests.lm.models import small
from tests.parity.weights_by_name import load_fixture


def padded(pieces, width):
    return np.array([*pieces, *[-1] * (width - len(pieces))], np.int32)


def offer(policy, words):
    """Inputs of one row that has these words to come."""
    look = [word["tokens"] for word in words[1:] if word["tokens"]][policy.look_ahead - 1 : policy.look_ahead]
    word = words[0] if words else {"tokens": [], "padding": 0}
    return {
        "word": padded(word["tokens"], policy.max_pieces),
        "word_ahead": padded(look[0] if look and policy.look_ahead else [], policy.max_pieces),
        "word_padding": np.int32(word["padding"]),
        "word_waiting": np.bool_(bool(words)),
        "text_done": np.bool_(True),
    }


@pytest.mark.parametrize("name", ["tts_voice", "tts_prefix"])
def test_the_state_machine_of_the_reference(name):
    description, want = load_fixture(name)
    config, settings = lm_config(description["config"]), description["settings"]
    policy = policies.Synthesis(
        audio_delay=settings["delay_steps"],
        look_ahead=settings["second_stream_ahead"],
        max_padding=settings["max_padding"],
        max_pieces=6,
        queue=30,
    )
    policy.check(config)
    batch, steps = want["predicted"].shape
    scripts, taken = [list(script) for script in description["scripts"]], [[] for _ in range(batch)]
    prefix = [want[f"prefix_{row}"].shape[1] if f"prefix_{row}" in want else 0 for row in range(batch)]
    state = policy.init_state(batch)
    text = jax.jit(lambda *arguments: policy.text(config, *arguments))
    ended = [None] * batch
    for step in range(steps):
        offered = [offer(policy, script) for script in scripts]
        inputs = {key: np.stack([row[key] for row in offered]) for key in policy.input_specs(batch)}
        free = np.array([step >= columns for columns in prefix])
        state, token, out = text(state, inputs, want["predicted"][:, step], free)
        np.testing.assert_array_equal(np.asarray(token)[free], want["fed"][free, step], err_msg=f"step {step}")
        for row in np.flatnonzero(out["word_taken"]):
            taken[row].append(step)
            scripts[row].pop(0)
        for row in np.flatnonzero(out["ended"]):
            ended[row] = step if ended[row] is None else ended[row]
    assert taken == description["consumption_times"]
    assert ended == description["end_steps"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(state)} == {batch}


SPEECH = small(lm.layouts.single_stream(2, acoustic_delay=1))
POLICY = policies.Synthesis(audio_delay=3, max_pieces=2, queue=4)


def test_a_row_that_stands_still_keeps_its_state():
    state = POLICY.init_state(2)
    offered = offer(POLICY, [{"tokens": [7, 8], "padding": 0}])
    inputs = {key: np.stack([offered[key]] * 2) for key in POLICY.input_specs(2)}
    for _ in range(3):
        state, token, out = POLICY.text(SPEECH, state, inputs, jnp.zeros(2, jnp.int32), jnp.array([True, False]))
    assert out["word_taken"].tolist() == [True, False] and token.tolist() == [0, 0]
    assert state["pieces"].tolist() == [[7, 8], [-1, -1]]
    again = policies.reset(POLICY, state, jnp.array([True, False]))
    fresh = POLICY.init_state(2)
    assert all((np.asarray(again[key]) == np.asarray(fresh[key])).all() for key in fresh)


def test_more_words_may_come_later():
    state, free = POLICY.init_state(1), jnp.ones(1, bool)
    nothing = offer(POLICY, [])
    inputs = {key: np.asarray(nothing[key])[None] for key in POLICY.input_specs(1)} | {"text_done": np.zeros(1, bool)}
    for _ in range(20):
        state, token, out = POLICY.text(SPEECH, state, inputs, jnp.zeros(1, jnp.int32), free)
        assert not out["ended"][0] and int(token[0]) == SPEECH.pad_id
    inputs["text_done"][:] = True
    assert POLICY.text(SPEECH, state, inputs, jnp.zeros(1, jnp.int32), free)[2]["ended"][0]


def test_audio_rows_are_empty_until_their_text_was_heard():
    force = jnp.full((2, 2), UNGENERATED)
    codes = POLICY.codes(SPEECH, jnp.array([2, 3]), force)
    assert codes.tolist() == [[ZERO, ZERO], [UNGENERATED, ZERO]]


def test_translation_ends_after_its_input():
    policy, config = policies.Translation(), small()
    state, free = policy.init_state(2), jnp.ones(2, bool)
    silent = {"end_of_input": jnp.zeros(2, bool)}
    given = jnp.zeros((2, 2), jnp.int32)
    assert (policy.given(config, silent, given) == 0).all()
    text = jnp.array([EOS, 5])
    state, out = policy.finish(config, state, silent, text, free)
    assert not out["ended"].any()  # an end before the end is none
    over = {"end_of_input": jnp.array([True, False])}
    assert policy.given(config, over, given).tolist() == [[config.card] * 2, [0, 0]]
    state, out = policy.finish(config, state, over, jnp.array([5, EOS]), free)
    assert not out["ended"].any()
    state, out = policy.finish(config, state, silent, jnp.array([EOS, EOS]), free)
    assert out["ended"].tolist() == [True, False]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: policies.Synthesis(audio_delay=-1), "audio_delay=-1: must be a whole number"),
        (lambda: policies.Synthesis(max_pieces=9, queue=8), "queue the larger"),
        (lambda: policies.Synthesis(look_ahead=2).check(SPEECH), "look_ahead=2 with demux_text=False"),
        (lambda: POLICY.check(small()), "synthesis takes no audio in"),
        (lambda: policies.Recognition().check(small()), "recognition with 2 generated audio rows"),
        (lambda: POLICY.check(dataclasses.replace(SPEECH, demux_text=True)), "look_ahead=0 with demux_text=True"),
    ],
)
def test_what_does_not_fit(make, message):
    with pytest.raises(ConfigError, match=message):
        make()

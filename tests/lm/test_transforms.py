"""The transitions between stages: names, shapes, and text logits that do not change."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.lm.layouts import MODEL, Stream, StreamLayout
from moshijax.lm.transforms import TRANSFORMS, for_calls
from moshijax.tokens import ZERO
from tests.lm.models import codes, params, small

TEXT = small(StreamLayout((Stream("text", MODEL),)))
SINGLE = small(lm.layouts.single_stream(3, 2))
TWO = small(lm.layouts.dialogue(3, 1, score_user=True))
RELEASED = small(lm.layouts.dialogue(3, 1))
HEARING = small(lm.layouts.recognition(3))


def apply(source, target, *names):
    """The parameters of `target` that the transforms make of those of `source`, checked by name and shape."""
    config, flat = source, flatten_dict(params(source), sep="/")
    fresh = flatten_dict(params(target, seed=1), sep="/")
    for name in names:
        config, flat = TRANSFORMS[name](config, flat, target, fresh)
    assert config == dataclasses.replace(target, layout=config.layout)
    wanted = flatten_dict(lm.abstract(target), sep="/")
    assert {name: leaf.shape for name, leaf in flat.items()} == {name: leaf.shape for name, leaf in wanted.items()}
    return unflatten_dict(flat, sep="/")


def with_delays(config, delays):
    rows = [dataclasses.replace(s, delay=d) for s, d in zip(config.layout.streams, delays, strict=True)]
    return dataclasses.replace(config, layout=StreamLayout(tuple(rows)))


def text_logits(config, tree, grid):
    return np.asarray(lm.forward(config, tree, grid).text_logits)


def test_helium_to_moshi_keeps_what_text_does():
    tree = apply(TEXT, SINGLE, "helium_to_moshi")
    grid = codes(SINGLE, 2, 8).at[:, 1:].set(ZERO)
    np.testing.assert_array_equal(text_logits(TEXT, params(TEXT), grid[:, :1]), text_logits(SINGLE, tree, grid))
    fresh = params(SINGLE, seed=1)
    jax.tree.map(np.testing.assert_array_equal, tree["depth"], fresh["depth"])
    table = np.asarray(fresh["audio_embedding"]["table"]).copy()
    table[:, SINGLE.card] = 0
    np.testing.assert_array_equal(tree["audio_embedding"]["table"], table)


def test_one_stream_to_two_copies_the_user_and_keeps_text_while_nobody_answers():
    tree, old = apply(SINGLE, TWO, "one_stream_to_two", "delays"), params(SINGLE)
    table, before = np.asarray(tree["audio_embedding"]["table"]), np.asarray(old["audio_embedding"]["table"])
    np.testing.assert_array_equal(table[:3], before)
    np.testing.assert_array_equal(table[3:, : TWO.card], before[:, : TWO.card])
    assert (table[3:, TWO.card] == 0).all()
    depth, was = tree["depth"], old["depth"]
    for of in (lambda tree: tree["inputs"]["kernel"], lambda tree: tree["heads"]["steps"]["kernel"]):
        kernel, from_ = np.asarray(of(depth)), np.asarray(of(was))
        np.testing.assert_array_equal(kernel, np.concatenate([from_, from_]))
    for part in (("attention", "in_proj"), ("mlp", "down")):
        kernel, from_ = (x["layers"][part[0]][part[1]]["steps"]["kernel"] for x in (depth, was))
        np.testing.assert_array_equal(kernel, np.concatenate([from_, from_], axis=1))
    tables, from_ = np.asarray(depth["audio_embedding"]["table"]), np.asarray(was["audio_embedding"]["table"])
    np.testing.assert_array_equal(tables, np.concatenate([from_, np.zeros_like(from_[:1]), from_]))
    wide = with_delays(TWO, (0, 0, 2, 2, 0, 2, 2))
    grid = codes(TWO, 2, 8).at[:, 4:].set(ZERO)
    np.testing.assert_array_equal(text_logits(SINGLE, old, grid[:, :4]), text_logits(wide, tree, grid))
    # the model's audio too: its steps come before the user's
    ours = lm.forward(wide, tree, grid).logits[:, :3]
    np.testing.assert_allclose(ours, lm.forward(SINGLE, old, grid[:, :4]).logits, atol=1e-5)


def test_release_keeps_the_model_as_it_is():
    tree, grid = apply(TWO, RELEASED, "release"), codes(TWO, 2, 8)
    assert RELEASED.layout.dep_q == 3
    whole, released = lm.forward(TWO, params(TWO), grid), lm.forward(RELEASED, tree, grid)
    np.testing.assert_array_equal(whole.text_logits, released.text_logits)
    np.testing.assert_allclose(whole.logits[:, :3], released.logits, atol=1e-5)


def test_score_user_is_the_way_back():
    tree = apply(RELEASED, TWO, "score_user")
    grid = codes(TWO, 2, 8)
    whole, released = lm.forward(TWO, tree, grid), lm.forward(RELEASED, params(RELEASED), grid)
    np.testing.assert_array_equal(whole.text_logits, released.text_logits)
    np.testing.assert_allclose(whole.logits[:, :3], released.logits, atol=1e-5)
    heads = np.asarray(tree["depth"]["heads"]["steps"]["kernel"])
    np.testing.assert_array_equal(heads[:3], heads[3:])


def test_another_delay_changes_no_parameter():
    later = with_delays(TWO, (0, 0, 2, 2, 0, 2, 2))
    tree = apply(later, TWO, "delays")
    jax.tree.map(np.testing.assert_array_equal, tree, params(later))
    # what the model sees is what decides: rows that were moved by hand instead have the same text logits
    grid = codes(TWO, 2, 8)
    moved = grid.at[:, 2:4].set(jnp.roll(grid[:, 2:4], 1, axis=2)).at[:, 5:].set(jnp.roll(grid[:, 5:], 1, axis=2))
    moved = moved.at[:, 2:4, 0].set(TWO.card).at[:, 5:, 0].set(TWO.card)
    np.testing.assert_array_equal(text_logits(later, tree, grid), text_logits(TWO, tree, moved))


def test_recognition_is_the_same_without_a_voice():
    tree = apply(SINGLE, HEARING, "recognition", "delays")
    grid = codes(SINGLE, 2, 8)
    late = with_delays(HEARING, SINGLE.layout.delays)
    np.testing.assert_array_equal(text_logits(SINGLE, params(SINGLE), grid), text_logits(late, tree, grid))


def test_shared_depth_weights_follow_their_steps():
    def shared(config, schedule):
        return dataclasses.replace(config, depth=dataclasses.replace(config.depth, schedule=schedule))

    source, target = shared(SINGLE, (0, 1, 1)), shared(TWO, (0, 1, 1, 2, 3, 3))
    tree, old = apply(source, target, "one_stream_to_two", "delays"), params(source)
    kernels, from_ = (np.asarray(x["depth"]["inputs"]["kernel"]) for x in (tree, old))
    np.testing.assert_array_equal(kernels, from_[[0, 1, 0, 1]])
    with pytest.raises(ConfigError, match="share weight 0 come from steps with weights"):
        apply(source, shared(TWO, (0, 0, 1, 0, 0, 1)), "one_stream_to_two")


@pytest.mark.parametrize(
    ("source", "target", "name", "message"),
    [
        (SINGLE, TWO, "helium_to_moshi", "has 3 audio rows already"),
        (TWO, TWO, "one_stream_to_two", "has 2 speakers .* it goes from 1 to 2"),
        (RELEASED, TWO, "release", "has 3 depth steps and this one 6; it removes"),
        (TWO, RELEASED, "score_user", "has 6 depth steps and this one 3; it adds"),
        (SINGLE, TWO, "delays", "has 4 rows and this one 7"),
        (SINGLE, TWO, "recognition", "takes a model with audio to one without"),
        (SINGLE, small(lm.layouts.dialogue(4, 1)), "one_stream_to_two", "codebook 3, has no counterpart"),
    ],
)
def test_a_transform_that_does_not_apply(source, target, name, message):
    with pytest.raises(ConfigError, match=message):
        apply(source, target, name)


@pytest.mark.parametrize(
    "depth",
    [
        {},
        {"schedule": (0, 1, 1, 2, 2, 2), "hidden_dims": (16, 24, 8), "output_norm": "rms_norm_f32", "low_rank": 4},
        {"schedule": (0, 1, 1, 2, 2, 2), "hidden_dims": (16, 8, 24)},
        {"weights_per_step": False, "multi_linear": False},
    ],
)
@pytest.mark.parametrize("stacked", [True, False])
def test_calls_leave_out_steps_that_are_only_scored(depth, stacked):
    """Codes equal token for token, from the first steps alone."""
    config = dataclasses.replace(TWO, depth=dataclasses.replace(TWO.depth, **depth))
    tree, random = params(config, stacked), np.random.RandomState(0)
    cut, fewer = for_calls(config, tree)
    assert cut.layout.dep_q == 3 and cut.layout.model_rows == config.layout.model_rows
    shapes = jax.tree.map(jnp.shape, fewer)
    assert shapes == jax.tree.map(jnp.shape, lm.abstract(cut, stacked=False))
    sampling, found = lm.Sampling().rows(2), {}
    given = random.randint(0, config.card, (6, 2, 3))
    for name, (model, values) in {"all": (config, tree), "cut": (cut, fewer)}.items():
        state = lm.init_generation(model, values, 2)
        step = jax.jit(
            lambda values, state, column, model=model: lm.generate_step(model, values, state, column, sampling)
        )
        for column in given:
            state, out = step(values, state, column)
            found.setdefault(name, []).append(np.asarray(out))
    np.testing.assert_array_equal(found["cut"], found["all"])


def test_a_model_without_such_steps_stays_as_it_is():
    tree = params(RELEASED, stacked=False)
    config, same = for_calls(RELEASED, tree)
    assert config == RELEASED and jax.tree.all(jax.tree.map(lambda a, b: a is b, same, tree))
    shared = dataclasses.replace(TWO, depth=dataclasses.replace(TWO.depth, schedule=(1, 2, 2, 0, 0, 0)))
    assert for_calls(shared, params(shared, stacked=False))[0] == shared

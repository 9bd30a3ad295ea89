from __future__ import annotations

import dataclasses
import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.lm import losses
from moshijax.nn.layout import stack_layers, unstack_layers
from moshijax.tokens import BOS, EOS, ZERO
from tests.lm.models import codes, params, small

CONFIG = small()


@functools.cache
def compiled(config):
    forward = jax.jit(functools.partial(lm.forward, config))
    return lambda *arguments: jax.device_get(forward(*arguments))


def test_both_layouts_are_one_function_and_round_trip():
    tree = params(CONFIG)
    flat = unstack_layers(tree)
    jax.tree.map(np.testing.assert_array_equal, stack_layers(flat), tree)
    # Operation by operation, so that no compiler reorders a sum: then the two are equal to the last bit.
    with jax.disable_jit():
        a, b = (lm.forward(CONFIG, layout, codes(CONFIG, 2, 4)) for layout in (tree, flat))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_training_without_a_scan_over_layers():
    """Own arrays per layer, stacked steps: the same function and gradients, and what `init` makes of the config."""
    tree, grid = params(CONFIG), codes(CONFIG, 2, 5)
    config = dataclasses.replace(CONFIG, scan_layers=False)
    loose = unstack_layers(tree, ("layers",))
    jax.tree.map(np.testing.assert_array_equal, stack_layers(loose), tree)
    assert jax.tree.map(np.shape, lm.abstract(config)) == jax.tree.map(np.shape, loose)
    assert jax.tree.structure(nn.meta.unbox(lm.partition_specs(config))) == jax.tree.structure(loose)

    grad = jax.jit(jax.grad(lambda tree: jnp.sum(jnp.sin(lm.score(CONFIG, tree, grid).nll))))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), grad(tree), stack_layers(grad(loose)))


def test_masks():
    grid = codes(CONFIG, 2, 9).at[0, 0, 3].set(ZERO).at[1, 2, 4].set(ZERO)
    out = compiled(CONFIG)(params(CONFIG), grid)
    want = np.ones((2, 2, 9), bool)
    want[:, 1, -2:] = False  # the acoustic delay is 2
    want[1, 1, 4] = False
    np.testing.assert_array_equal(out.mask, want)
    assert out.text_mask.sum() == 17 and not out.text_mask[0, 0, 3]
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(out))


def test_what_each_prediction_may_see():
    """By gradient of the predictions with respect to the embedded tokens, through one-hot inputs."""
    T = 7
    grid = codes(CONFIG, 1, T)
    base = compiled(CONFIG)(params(CONFIG), grid)
    delays = CONFIG.layout.delays
    for row in range(CONFIG.layout.num_streams):
        for t in range(T):
            changed = np.array(grid)
            changed[0, row, t] = (changed[0, row, t] + 1) % CONFIG.card
            out = compiled(CONFIG)(params(CONFIG), changed)
            position = t + 1 + delays[row]  # where the token is an input
            moved_text = np.abs(out.text_logits - base.text_logits)[0, 0].max(-1) > 0
            assert not moved_text[: min(position, T)].any(), (row, t)
            for q in range(CONFIG.layout.dep_q):
                moved = np.abs(out.logits - base.logits)[0, q].max(-1) > 0
                # Row 1 + q of frame s is predicted at position s + 1 + delay, after the rows before it.
                for s in range(T - delays[1 + q]):
                    at = s + 1 + delays[1 + q]
                    may_see = position < at or (position == at and row <= q)
                    assert may_see or not moved[s], (row, t, q, s)
                if row == q and t + delays[row] - delays[1 + q] in range(T - delays[1 + q]):
                    assert moved[t + delays[row] - delays[1 + q]], "the row before must matter"


def test_zero_tokens_add_nothing():
    config = small(layout=lm.layouts.recognition(2))
    tree = params(config)
    grid = codes(config, 1, 6).at[:, 1:].set(ZERO)
    table = np.array(tree["audio_embedding"]["table"])
    table[:, : config.card] = 9.0
    other = {**tree, "audio_embedding": {"table": table}}
    a, b = compiled(config)(tree, grid), compiled(config)(other, grid)
    np.testing.assert_array_equal(a.text_logits, b.text_logits)


def test_scores_are_those_of_the_logits():
    grid = codes(CONFIG, 2, 8).at[0, 0, 3].set(ZERO).at[1, 2:, 5:].set(ZERO)
    out = jax.device_get(compiled(CONFIG)(params(CONFIG), grid))
    whole = jax.jit(functools.partial(lm.score, CONFIG))(params(CONFIG), grid)
    mask = np.asarray(lm.target_mask(CONFIG, grid))
    logits = [np.asarray(out.text_logits, np.float64)[:, 0], *np.moveaxis(np.asarray(out.logits, np.float64), 1, 0)]
    for row, x in enumerate(logits):
        target = np.asarray(grid[:, row])
        nll = np.log(np.exp(x).sum(-1)) - np.take_along_axis(x, np.maximum(target, 0)[..., None], -1)[..., 0]
        np.testing.assert_allclose(whole.nll[:, row][mask[:, row]], nll[mask[:, row]], rtol=1e-5)
        np.testing.assert_array_equal(whole.correct[:, row][mask[:, row]], (x.argmax(-1) == target)[mask[:, row]])


@pytest.mark.parametrize("frames", [3, 8])
def test_scores_in_pieces_are_those_of_the_whole(frames):
    grid = codes(CONFIG, 2, 8)

    def value(tree, frames):
        scores = lm.score(CONFIG, tree, grid, frames=frames)
        return jnp.sum(jnp.sin(scores.nll)), scores

    grad = jax.jit(jax.grad(value, has_aux=True), static_argnums=1)
    for whole, pieces in zip(*(jax.tree.leaves(grad(params(CONFIG), n)) for n in (None, frames)), strict=True):
        np.testing.assert_allclose(whole, pieces, rtol=1e-5, atol=1e-6)


def test_whole_logits_do_not_exist_when_scored_in_pieces():
    grid = codes(CONFIG, 2, 64)

    def shapes(frames):
        loss = lambda tree: jnp.sum(lm.score(CONFIG, tree, grid, frames=frames).nll)  # noqa: E731
        return str(jax.make_jaxpr(jax.grad(loss))(params(CONFIG)))

    text, audio = f"f32[1,2,64,{CONFIG.text_card}]", f"f32[{CONFIG.layout.dep_q},128,{CONFIG.card}]"
    assert text in shapes(None) and audio in shapes(None)
    assert text not in shapes(4) and audio not in shapes(4)


def test_scores_of_some_frames_of_the_depth_transformer_add_up_to_those_of_all():
    grid = codes(CONFIG, 2, 8).at[1, 2:, 5:].set(ZERO)
    some = jnp.array([[0, 2, 5, 7], [1, 2, 3, 6]])
    rest = jnp.array([[1, 3, 4, 6], [0, 4, 5, 7]])

    def value(tree, chosen, pieces):
        scores = lm.score(CONFIG, tree, grid, depth_frames_BF=chosen, frames=pieces)
        sums = losses.numerators(CONFIG, losses.LossConfig(), scores, grid)
        return sums["text"] + sums["audio"], (sums, scores)

    run = jax.jit(jax.grad(value, has_aux=True), static_argnums=2)
    grads, (sums, whole) = run(params(CONFIG), None, None)
    halves = [run(params(CONFIG), chosen, 3) for chosen in (some, rest)]
    mask = np.asarray(lm.target_mask(CONFIG, grid))
    for _, (_, scores) in halves:
        seen = mask & (np.asarray(scores.counts) > 0)
        assert 0 < seen[:, 1:].sum() < mask[:, 1:].sum() and seen[:, 0].sum() == mask[:, 0].sum()
        np.testing.assert_allclose(np.asarray(scores.nll)[seen], np.asarray(whole.nll)[seen], rtol=1e-5)
        np.testing.assert_array_equal(np.asarray(scores.correct)[seen], np.asarray(whole.correct)[seen])
    mean = jax.tree.map(lambda a, b: (a + b) / 2, *((grads, sums) for grads, (sums, _) in halves))
    for ours, theirs in zip(jax.tree.leaves(mean), jax.tree.leaves((grads, sums)), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * np.abs(theirs).max())


def test_text_scores_are_the_text_part():
    grid = codes(CONFIG, 2, 8).at[:, 1:].set(ZERO)
    text = jax.jit(functools.partial(lm.score, CONFIG, text_only=True))(params(CONFIG), grid)
    both = jax.jit(functools.partial(lm.score, CONFIG))(params(CONFIG), grid)
    assert text.nll.shape == (2, 1, 8)
    np.testing.assert_allclose(text.nll, both.nll[:, :1], atol=1e-6)


def test_text_steps_leave_the_depth_transformer_alone():
    grid = codes(CONFIG, 2, 8).at[:, 1:].set(ZERO)
    grads = jax.jit(jax.grad(lambda p: jnp.sum(lm.score(CONFIG, p, grid, text_only=True).nll)))(params(CONFIG))
    grads = jax.device_get(grads)
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads["depth"]))
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(grads["temporal"]))


def test_conditions_are_added():
    config = small(conditioners=(lm.LookupConditioner("mood", 3, 4), lm.LookupConditioner("pace", 2, 4)))
    tree, grid = params(config), codes(config, 2, 5)
    forward = compiled(config)
    absent = forward(tree, grid, None).text_logits
    same = forward(tree, grid, {"mood": np.array([-1, -1])}).text_logits
    np.testing.assert_array_equal(absent, same)
    some = forward(tree, grid, {"mood": np.array([-1, 2])}).text_logits
    np.testing.assert_allclose(some[0], absent[0], atol=1e-6)
    assert np.abs(some[1] - absent[1]).max() > 1e-3


VOICED = small(
    conditioners=(lm.LookupConditioner("mood", 3, 4), lm.TensorConditioner("voice", 5, length=3)),
    temporal=dataclasses.replace(CONFIG.temporal, cross_attention=True, layer_scale=0.7),
    cross_positions=0.5,
)


def test_vectors_are_read_by_cross_attention():
    tree, grid, forward = params(VOICED), codes(VOICED, 2, 5), compiled(VOICED)
    absent = forward(tree, grid, None).text_logits
    vectors = np.random.RandomState(0).standard_normal((2, 2, 5)).astype(np.float32)
    mask = np.array([[True, True], [False, False]])
    some = forward(tree, grid, {"voice": lm.Vectors(vectors, mask)}).text_logits
    # A masked vector does not matter, and fewer than `length` are filled up with absent ones.
    np.testing.assert_allclose(some[1], absent[1], atol=1e-6)
    assert np.abs(some[0] - absent[0]).max() > 1e-3
    grads = jax.jit(jax.grad(lambda p: jnp.sum(jnp.sin(lm.forward(VOICED, p, grid).text_logits))))(tree)
    assert all((leaf != 0).any() for leaf in jax.tree.leaves(jax.device_get(grads["temporal"])))


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"tempo": [0, 0]}, "unknown condition 'tempo': the model has mood, voice"),
        ({"mood": [0]}, r"condition mood of shape \(1,\): must be one value per row, \[2\]"),
        ({"voice": lm.Vectors(np.zeros((2, 2, 4)), np.ones((2, 2)))}, r"must be \[2, S, 5\] and \[2, S\]"),
        ({"voice": lm.Vectors(np.zeros((2, 4, 5)), np.ones((2, 4)))}, "voice has 4 positions: must be at most 3"),
    ],
)
def test_bad_conditions(conditions, message):
    with pytest.raises(ConfigError, match=message):
        jax.eval_shape(lambda: lm.forward(VOICED, lm.abstract(VOICED), codes(VOICED, 2, 3), conditions))


def test_depth_schedule_and_remat_keep_gradients():
    """Shared weights through the batched products and through separate arrays; with and without remat."""
    layout = lm.layouts.dialogue(codebooks=3, acoustic_delay=1)
    depth = dataclasses.replace(CONFIG.depth, schedule=(0, 1, 1), low_rank=4, output_norm="layer_norm")
    config = small(layout, depth=depth)
    tree, grid = params(config), codes(config, 2, 5)

    def value(config, tree):
        out = lm.forward(config, tree, grid)
        return jnp.sum(jnp.sin(out.logits)) + jnp.sum(jnp.sin(out.text_logits))

    a, grads_a = jax.jit(jax.value_and_grad(functools.partial(value, config)))(tree)
    b, grads_b = jax.jit(jax.value_and_grad(functools.partial(value, config)))(unstack_layers(tree))
    remat = dataclasses.replace(
        config,
        temporal=dataclasses.replace(config.temporal, remat_policy="full"),
        depth=dataclasses.replace(depth, transformer=dataclasses.replace(depth.transformer, remat_policy="dots")),
    )
    c, grads_c = jax.jit(jax.value_and_grad(functools.partial(value, remat)))(tree)
    np.testing.assert_allclose([b, c], a, rtol=1e-5)
    for grads in (stack_layers(grads_b), grads_c):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, atol=2e-4, rtol=1e-4), grads_a, grads)


def test_padding_of_uneven_widths_gets_no_gradient():
    config = small(depth=dataclasses.replace(CONFIG.depth, hidden_dims=(24, 10)))
    tree, grid = params(config), codes(config, 2, 5)
    grads = jax.device_get(jax.jit(jax.grad(lambda p: jnp.sum(lm.forward(config, p, grid).logits ** 2)))(tree))
    for name, axis in (("gate", 2), ("up", 2), ("down", 3)):
        for leaf in (tree, grads):
            kernel = leaf["depth"]["layers"]["mlp"][name]["steps"]["kernel"]
            narrow = np.moveaxis(np.asarray(kernel)[:, 1], axis - 1, 1)
            assert (narrow[:, 10:] == 0).all() and (narrow[:, :10] != 0).any()


def test_logical_axes_cover_every_parameter():
    specs = lm.partition_specs(CONFIG)
    shapes = lm.abstract(CONFIG)
    assert jax.tree.map(lambda leaf: len(leaf.shape), shapes) == jax.tree.map(
        len, specs, is_leaf=lambda leaf: isinstance(leaf, jax.sharding.PartitionSpec)
    )
    layers, depth = specs["temporal"]["layers"], specs["depth"]["layers"]
    assert tuple(layers["attention"]["in_proj"]["kernel"]) == ("layers", "heads_rows", "embed_columns")
    assert tuple(depth["mlp"]["up"]["steps"]["kernel"]) == ("layers", "steps", "mlp_rows", "embed_columns")
    boxed = jax.eval_shape(lambda key: lm.init_boxed(CONFIG, key), jax.random.key(0))
    leaves = jax.tree.leaves(boxed, is_leaf=lambda leaf: hasattr(leaf, "names"))
    assert all(isinstance(leaf, nn.Partitioned) for leaf in leaves)


def test_initial_scales():
    config = dataclasses.replace(CONFIG, text_card=4000)
    tree = lm.init(config, jax.random.key(0))
    table = np.asarray(tree["text_embedding"]["table"])
    assert table.std() == pytest.approx(1 / 32**0.5, rel=0.03) and np.abs(table).max() <= 3.0 / 32**0.5 + 1e-6
    depth = np.asarray(tree["depth"]["layers"]["attention"]["in_proj"]["steps"]["kernel"])
    assert np.abs(depth).max() <= 0.25 and depth.std() == pytest.approx(0.25 / 3**0.5, rel=0.05)
    assert (np.asarray(tree["out_norm"]["scale"]) == 1).all()


def test_codes_of_another_layout_are_refused():
    with pytest.raises(ConfigError, match=r"must be \[B, 5, T\]"):
        lm.forward(CONFIG, params(CONFIG), jnp.zeros((1, 4, 3), jnp.int32))


def test_numpy_parameters_may_be_constants_of_a_compiled_function():
    """What `load_lm` gives, closed over by a function that a user compiles."""
    tree = jax.tree.map(np.asarray, params(CONFIG))
    found = jax.jit(lambda grid: lm.forward(CONFIG, tree, grid).text_logits)(codes(CONFIG, 1, 4))
    np.testing.assert_allclose(found, compiled(CONFIG)(tree, codes(CONFIG, 1, 4)).text_logits, atol=1e-5)


def test_separate_documents_do_not_see_each_other():
    documents = [np.array(codes(CONFIG, 2, 8, seed)) for seed in range(3)]
    for document in documents:
        document[:, 0, 0], document[:, 0, -1], document[:, 1:] = BOS, EOS, ZERO
    packed = [np.concatenate([documents[first], documents[2]], axis=2) for first in (0, 1)]
    forward = jax.jit(functools.partial(lm.score, CONFIG, text_only=True), static_argnames="separate_documents")
    apart = [forward(params(CONFIG), grid, separate_documents=True).nll for grid in packed]
    together = [forward(params(CONFIG), grid).nll for grid in packed]
    # The last input of a document is its EOS, whose prediction is of the BOS that follows.
    np.testing.assert_array_equal(apart[0][:, :, 9:], apart[1][:, :, 9:])
    assert np.abs(np.asarray(together[0] - together[1]))[:, :, 9:].max() > 0.01
    np.testing.assert_allclose(apart[0][:, :, :9], together[0][:, :, :9], atol=1e-6)
    # A row may begin with the last token of a document: the next one does not see it either.
    cut = [np.pad(grid[:, :, 7:], ((0, 0), (0, 0), (0, 7)), constant_values=ZERO) for grid in packed]
    cut[1][:, 0, 0] = 9
    apart = [forward(params(CONFIG), grid, separate_documents=True).nll for grid in cut]
    np.testing.assert_array_equal(apart[0][:, :, 2:9], apart[1][:, :, 2:9])
    assert (apart[0][:, :, 1] != apart[1][:, :, 1]).all()

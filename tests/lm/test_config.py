from __future__ import annotations

import dataclasses

import jax
import pytest

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.nn.transformer import TransformerConfig
from tests.lm.models import small

DEPTH = small().depth


@pytest.mark.parametrize(("name", "count"), [("MOSHI_7B", 7_687_729_152), ("DEV_2B", 3_729_805_312)])
def test_published_sizes(name, count):
    """Counts of the published models; nothing is allocated."""
    assert lm.count_parameters(getattr(lm.configs, name)) == count


def test_parts_of_the_7b():
    shapes = lm.abstract(lm.configs.MOSHI_7B)

    def count(tree):
        return sum(leaf.size for leaf in jax.tree.leaves(tree))

    assert count(shapes["temporal"]) == 6_576_930_816
    assert count(shapes["depth"]["layers"]) == 616_574_976
    assert count(shapes["audio_embedding"]) == 134_283_264
    assert count(shapes["text_embedding"]) == 131_076_096
    assert count(shapes["text_head"]) == 131_072_000
    assert count(shapes["depth"]["inputs"]) == 33_554_432
    assert count(shapes["depth"]["text_embedding"]) == 32_769_024
    assert count(shapes["depth"]["heads"]) == 16_777_216
    assert count(shapes["depth"]["audio_embedding"]) == 14_687_232
    assert count(shapes["out_norm"]) == 4_096


@pytest.mark.parametrize(
    ("config", "parameters"),
    [(lm.configs.HIBIKI_ZERO_3B, 3_131_686_912), (lm.configs.TTS_1_6B, 1_836_550_272)],
)
def test_released_sizes(config, parameters):
    assert lm.count_parameters(config) == parameters


def test_named_configs_trace():
    """Forward and one generation step of the full-size models, by shape alone."""
    for config in (lm.configs.MOSHI_7B, lm.configs.DEV_2B, lm.configs.HIBIKI_ZERO_3B, lm.configs.TTS_1_6B):
        params = lm.abstract(config, stacked=False)
        layout = config.layout
        codes = jax.ShapeDtypeStruct((1, layout.num_streams, 4), "int32")
        out = jax.eval_shape(lambda p, c, config=config: lm.forward(config, p, c), lm.abstract(config), codes)
        assert out.logits.shape == (1, layout.dep_q, 4, 2048)
        assert out.text_logits.shape == (1, 1, 4, config.text_card)
        state = jax.eval_shape(lambda config=config: lm.init_generation(config, None, 2))
        given = jax.ShapeDtypeStruct((2, len(layout.given_rows)), "int32")
        after, column = jax.eval_shape(
            lambda p, s, g, config=config: lm.generate_step(config, p, s, g, lm.Sampling().rows(2)),
            params,
            state,
            given,
        )
        assert column.shape == (2, len(layout.model_rows))
        assert jax.tree.map(lambda a: (a.shape, a.dtype), after) == jax.tree.map(lambda a: (a.shape, a.dtype), state)


def test_uneven_depth_widths_are_counted_without_their_padding():
    stack = dataclasses.replace(DEPTH.transformer, num_layers=2)
    layout = small().layout
    even = small(depth=lm.DepthConfig(stack))
    uneven = small(depth=lm.DepthConfig(stack, hidden_dims=(24, 10)))
    assert layout.dep_q == 2
    assert lm.count_parameters(even) - lm.count_parameters(uneven) == 2 * 3 * 16 * 14


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda: small(card=0), "card=0"),
        (lambda: small(pad_id=24), "pad_id=24"),
        (lambda: small(conditioners=(lm.TensorConditioner("voice", 4),)), r"with conditioners \['voice'\] for it"),
        (lambda: lm.TensorConditioner("voice", 4, length=2, fuse="sum"), "length=2 cannot be summed"),
        (lambda: lm.LookupConditioner("mood", 2, 4, fuse="prepend"), "fuse='prepend' must be sum or cross"),
        (lambda: small(text_card=50000, demux_text=True), "text_card=50000: pairs of pieces"),
        (lambda: TransformerConfig(8, 1, 2, 8, kv_repeat=2, cross_attention=True), "kv_repeat=2 with cross_attention"),
        (lambda: small(depth=None), "no depth transformer with 2"),
        (lambda: small(layout=lm.layouts.recognition(2), depth=DEPTH), "a depth transformer with 0"),
        (lambda: small(depth=dataclasses.replace(DEPTH, schedule=(0, 1, 1))), "schedule has 3 entries"),
        (lambda: dataclasses.replace(DEPTH, schedule=(0, 2)), "must use every weight"),
        (lambda: dataclasses.replace(DEPTH, hidden_dims=(20, 22)), "largest of hidden_dims"),
        (lambda: small(depth=dataclasses.replace(DEPTH, hidden_dims=(24,))), "hidden_dims has 1 entries"),
        (lambda: dataclasses.replace(DEPTH, output_norm="batch"), "output_norm='batch'"),
        (lambda: lm.DepthConfig(dataclasses.replace(DEPTH.transformer, context=4)), "depth context=4"),
        (lambda: lm.DepthConfig(dataclasses.replace(DEPTH.transformer, gating="none")), "gating='none'"),
        (lambda: TransformerConfig(dim=30, num_layers=1, num_heads=4, hidden_dim=8), "num_heads=4 does not divide"),
    ],
)
def test_bad_configs_name_value_and_rule(change, message):
    with pytest.raises(ConfigError, match=message):
        change()


def test_configs_are_hashable():
    assert len({lm.configs.MOSHI_7B, lm.configs.DEV_2B, lm.configs.TINY, small(), small()}) == 4

"""What the programs of a language model compute, beyond what results on a CPU show."""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from moshijax import lm
from moshijax.lm import transforms
from moshijax.nn.layout import unstack_layers
from moshijax.nn.quantised import quantise_kernels
from tests.lm.models import codes, params, small
from tests.programs import Type, conditionals, lowered, operands, products, results, sums

FRAMES = 17
ROWS = 8


def half(config: lm.LMConfig) -> lm.LMConfig:
    """The same model in bfloat16, with float32 weights."""
    return config.with_dtype("bfloat16", precision="default")


def training(config: lm.LMConfig) -> str:
    """The gradient of a loss, lowered."""
    grid = codes(config, 2, FRAMES)
    return lowered(jax.grad(lambda tree: jnp.sum(lm.score(config, tree, grid).nll)), lm.abstract(config))


@functools.cache
def serving(config: lm.LMConfig) -> str:
    """A step of several rows, some of which may be frozen, lowered."""
    tree = jax.eval_shape(unstack_layers, lm.abstract(config))
    if config.temporal.cache_dtype == "int8":
        tree = jax.eval_shape(quantise_kernels, tree)
    given = jnp.zeros((ROWS, len(config.layout.given_rows)), jnp.int32)
    state, active = lm.init_generation(config, None, ROWS), jnp.ones((ROWS,), bool)

    def step(tree, state, given, sampling, active):
        return lm.generate_step(config, tree, state, given, sampling, active_B=active)

    return lowered(step, tree, state, given, lm.Sampling().rows(ROWS), active)


def over_frames(found: list[Type]) -> list[str]:
    """Types of the results in which no axis is left that runs over frames."""
    return [one.dtype for one in found if not any(size % FRAMES == 0 for size in one.shape)]


def test_sums_over_frames_are_float32():
    """Gradients of weights in bfloat16 training: what devices and microbatches add up is not rounded before."""
    config, scaled = small(lm.layouts.dialogue(codebooks=3, acoustic_delay=1)), dict(layer_scale=0.1)
    depth = dataclasses.replace(config.depth.transformer, **scaled)
    depth = dataclasses.replace(
        config.depth, transformer=depth, schedule=(0, 1, 1), output_norm="layer_norm", low_rank=4
    )
    temporal = dataclasses.replace(config.temporal, **scaled)
    config = half(dataclasses.replace(config, temporal=temporal, depth=depth, bias_proj=True, demux_text=True))
    program = training(config)
    # Five maps of a layer, the text head, two projections of the text; in the depth transformer inputs, heads and those
    # of its text and audio. In its layers a weight that serves two steps of three is a product apart.
    temporal, depth = 5 + 1 + 2, 2 * 5 + 1 + 1 + 2 + 1
    made = over_frames(products(program))
    assert made == ["f32"] * (temporal + depth), made
    made = over_frames(sums(program))
    assert made and set(made) == {"f32"}, made


def test_scores_of_attention_are_float32():
    """In bfloat16 the products under a softmax come out in float32, and no others but the halves of a step's sums."""
    config = half(small())
    temporal, depth = config.temporal, config.depth.transformer
    scores = [ROWS * temporal.num_heads * temporal.context, ROWS * 2 * temporal.dim] * temporal.num_layers
    for step in range(config.layout.dep_q):
        scores += [ROWS * depth.num_heads * (step + 1)] * depth.num_layers
    assert [math.prod(one.shape) for one in products(serving(config)) if one.dtype == "f32"] == scores
    program = lowered(functools.partial(lm.forward, config), lm.abstract(config), codes(config, 1, FRAMES))
    # Layers are scanned: each stack is written once.
    scores = [temporal.num_heads * FRAMES**2, FRAMES * depth.num_heads * config.layout.dep_q**2]
    assert [math.prod(one.shape) for one in products(program) if one.dtype == "f32"] == scores


def test_a_step_has_no_branches():
    """An accelerator would wait for the host at every one."""
    assert conditionals(serving(small())) == 0


def test_rings_are_written_and_not_read_back():
    """A gather from a ring beside its scatter keeps accelerators from writing in place."""
    config = small()
    stack = config.temporal
    ring = Type((ROWS * stack.num_heads, stack.context, stack.dim // stack.num_heads), "f32")
    program = serving(config)
    assert operands(program, "scatter").count(ring) == 2 * stack.num_layers
    assert ring not in operands(program, "gather")


def test_a_step_has_products_for_generated_rows_alone():
    """A model that was trained on the user's rows too makes the program of one that was not."""
    trained, released = (small(lm.layouts.dialogue(codebooks=4, score_user=user)) for user in (True, False))
    cut, _ = transforms.for_calls(trained, params(trained))
    depth, temporal = released.depth.transformer, released.temporal
    # Of a depth step: five products of every layer, two of its attention, and the head; of a frame: the inputs.
    expected = 7 * temporal.num_layers + 1 + 4 * (7 * depth.num_layers + 1) + 1
    assert len(products(serving(released))) == len(products(serving(cut))) == expected
    inputs = {steps: Type((ROWS, steps * depth.dim), "f32") for steps in (4, 8)}
    for config, steps in ((released, 4), (cut, 4), (trained, 8)):
        assert [one for one in products(serving(config)) if one in inputs.values()] == [inputs[steps]]


def test_kernels_and_rings_of_integers_are_not_multiplied_out():
    """Scales multiply products: an array of floats as large as a kernel or a ring would be written to memory.

    The conversion of integers is the one exception, which compilers make part of the product that reads it.
    """
    config = half(small(temporal=dataclasses.replace(small().temporal, cache_dtype="int8")))
    stack = config.temporal
    program = serving(config)
    heads, width = stack.num_heads, stack.dim // stack.num_heads
    large = {(stack.hidden_dim, stack.dim), (3 * stack.dim, stack.dim), (stack.dim, stack.hidden_dim)}
    large |= {(ROWS * heads, stack.context, width), (ROWS, heads, stack.context, width)}
    for operation in ("multiply", "divide", "add"):
        assert not {one.shape for one in results(program, operation)} & large, operation
    ring = Type((ROWS * heads, stack.context, width), "i8")
    assert operands(program, "scatter").count(ring) == 2 * stack.num_layers
    assert ring not in operands(program, "gather")
    converted = [one for one in results(program, "convert") if one.shape in large]
    assert converted and {one.dtype for one in converted} == {"bf16"}

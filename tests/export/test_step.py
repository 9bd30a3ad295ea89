"""The exported step against the functions it is made of, and against whole sequences."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import codec, lm, runtime
from moshijax.errors import ConfigError
from moshijax.export.step import CallStep, Signature, flatten
from moshijax.lm import policies
from moshijax.nn.layout import unstack_layers
from moshijax.testing import tiny
from moshijax.tokens import UNGENERATED


def test_step_equals_codec_and_language_model(models, rows1):
    """PCM to PCM through the artifact = encode, generate_step and decode called one after the other."""
    (codec_config, codec_params), (lm_config, lm_params), _ = models
    frames = 30
    pcm = (np.random.RandomState(1).randn(1, frames * codec_config.frame_size) * 0.3).astype(np.float32)

    codes_BQT = np.asarray(codec.encode(codec_config, codec_params, pcm, num_codebooks=3))
    sampling = lm.Sampling(0.8, 0.7, 20, 20, 0.5, seed=np.array([[0, 11]])).rows(1)
    state = lm.init_generation(lm_config, lm_params, 1)
    generate = jax.jit(lambda params, state, given: lm.generate_step(lm_config, params, state, given, sampling))
    # The first call only primes: whatever is given, it is not looked at.
    columns = [np.zeros((1, 3), np.int32), *codes_BQT.transpose(2, 0, 1)]
    expected = []
    for given in columns:
        state, out = generate(lm_params, state, given)
        expected.append(np.asarray(out[0]))
    assert (expected[0] == UNGENERATED).all()
    expected = np.stack(expected[1:], axis=1)
    waveform = np.asarray(codec.decode(codec_config, codec_params, expected[None, 1:]))[0]

    chosen = dict(temperature=0.8, text_temperature=0.7, top_k=20, text_top_k=20, pad_bonus=0.5)
    row = rows1.open(runtime.CallOptions(11, chosen))
    assert not rows1.step(pcm[:, :640]).heard[row]
    got = [rows1.step(pcm[:, t * 640 : (t + 1) * 640]) for t in range(frames)]
    rows1.close(row)
    np.testing.assert_array_equal(np.stack([frame.codes[0, :4] for frame in got], axis=1), expected)
    np.testing.assert_array_equal([frame.text_token[0] for frame in got], expected[0])
    np.testing.assert_array_equal(np.stack([frame.codes[0, 4:] for frame in got], axis=1), codes_BQT[0])
    np.testing.assert_allclose(np.concatenate([frame.pcm[0] for frame in got]), waveform, atol=1e-4 * waveform.std())
    assert [int(frame.index[0]) for frame in got] == list(range(frames))


def test_logits_equal_a_whole_sequence_far_beyond_the_window(models, loaded):
    """The step's logits after the ring has rolled over five times = a teacher-forced forward with the window mask."""
    _, (lm_config, lm_params), _ = models
    frames = 5 * lm_config.temporal.context + 3
    random = np.random.RandomState(2)
    given = random.randint(0, lm_config.card, (frames, 4, 3)).astype(np.int32)
    state = loaded.init_state(4)
    codes, logits, text_logits = [], [], []
    for t in range(frames + 1):
        inputs = loaded.program("step_tokens", 4).inputs()
        inputs["active"][:] = True
        inputs["seed"][:, 1] = range(4)
        if t:
            inputs["given"] = given[t - 1]
        state, outputs = loaded.program("step_tokens", 4)(loaded.weights, state, inputs)
        codes.append(np.asarray(outputs["codes"]))
        logits.append(np.asarray(outputs["logits"]))
        text_logits.append(np.asarray(outputs["text_logits"]))
    codes_BKT = np.stack(codes[1:], axis=2)
    assert (codes_BKT >= 0).all()
    whole = lm.forward(lm_config, lm_params, jnp.asarray(codes_BKT))
    # Call n samples text and the semantic level of column n - 1 and, one frame late, the acoustic levels of n - 2.
    stepwise_text = np.stack(text_logits[:-1], axis=1)
    np.testing.assert_allclose(stepwise_text, whole.text_logits[:, 0], atol=1e-4)
    stepwise = np.stack(logits, axis=2)
    delays = lm_config.layout.delays[1:4]
    for q, delay in enumerate(delays):
        # Without the last column, of which the undelayed sequence has seen only a part.
        mine = stepwise[:, q, delay : delay + frames - 1]
        np.testing.assert_allclose(mine, whole.logits[:, q, : frames - 1], atol=1e-4)
    assert bool(whole.mask[:, :, : frames - 1].all()) and bool(whole.text_mask.all())


def test_step_and_step_tokens_share_one_state(loaded):
    """Rows may be stepped by either program; the codec of a row that takes tokens does not advance."""
    state = loaded.init_state(4)
    inputs = loaded.program("step_tokens", 4).inputs()
    inputs["active"][:2] = True
    inputs["given"][:] = 5
    for _ in range(3):
        state, outputs = loaded.program("step_tokens", 4)(loaded.weights, state, inputs)
    assert list(np.asarray(outputs["ready"])) == [True, True, False, False]
    fresh = loaded.init_state(4)
    for name, value in state.items():
        if name.startswith(("encoder", "decoder")):
            np.testing.assert_array_equal(value, fresh[name])
    inputs = loaded.program("step", 4).inputs()
    inputs["active"][:] = True
    state, outputs = loaded.program("step", 4)(loaded.weights, state, inputs)
    assert list(np.asarray(outputs["ready"])) == [True, True, False, False]


@pytest.mark.parametrize(
    ("layout", "inputs", "outputs"),
    [
        (lm.layouts.recognition(codebooks=3), {"pcm"}, set()),
        (lm.layouts.single_stream(codebooks=3), set(), {"pcm"}),
        (lm.layouts.dialogue(codebooks=3), {"pcm"}, {"pcm"}),
    ],
)
def test_inputs_and_outputs_follow_from_the_layout(layout, inputs, outputs):
    depth = tiny.LM.depth if layout.dep_q else None
    step = CallStep(tiny.CODEC, dataclasses.replace(tiny.LM, layout=layout, depth=depth))
    specs = step.input_specs(Signature("step", 2))
    assert {"pcm"} & set(specs) == inputs
    (codec_config, codec_params), (lm_config, lm_params), _ = tiny.tiny_models(lm_config=step.lm)
    weights = flatten({"codec": codec.inference_layout(codec_config, codec_params), "lm": unstack_layers(lm_params)})
    state = step.init_state(2)
    neutral = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    neutral |= {name: jnp.full_like(neutral[name], UNGENERATED) for name in ("force_text", "force_codes")}
    new, out = jax.eval_shape(step.step, weights, state, neutral)
    assert {"pcm"} & set(out) == outputs and out["codes"].shape == (2, layout.num_streams)
    assert set(new) == set(state)


def test_first_step_is_never_ready_even_without_delays():
    """Recognition has no delay at all; still the first executed step only primes."""
    config = dataclasses.replace(tiny.LM, layout=lm.layouts.recognition(codebooks=3), depth=None)
    step = CallStep(tiny.CODEC, config)
    (codec_config, codec_params), (_, lm_params), _ = tiny.tiny_models(lm_config=config)
    weights = flatten({"codec": codec.inference_layout(codec_config, codec_params), "lm": lm_params})
    state = step.init_state(1)
    specs = step.input_specs(Signature("step_tokens", 1))
    inputs = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    inputs |= {"active": jnp.ones(1, bool), "force_text": jnp.array([UNGENERATED])}
    ready, step_tokens = [], jax.jit(step.step_tokens)
    for _ in range(3):
        state, out = step_tokens(weights, state, inputs)
        ready.append(bool(out["ready"][0]))
        assert (int(out["text_token"][0]) == UNGENERATED) == (not ready[-1])
    assert ready == [False, True, True]


def test_a_step_takes_the_next_of_the_words_it_is_offered():
    """Words 1 to 4 are offered to rows that have taken 0 to 5: the next one, or none that is not among them."""
    config = dataclasses.replace(tiny.LM, layout=lm.layouts.single_stream(codebooks=3))
    policy = policies.Synthesis(audio_delay=2, initial_padding=0, max_pieces=2, queue=2)
    step, batch = CallStep(tiny.CODEC, config, policy=policy), 6
    (codec_config, codec_params), (_, lm_params), _ = tiny.tiny_models(lm_config=config)
    weights = flatten({"codec": codec.inference_layout(codec_config, codec_params), "lm": unstack_layers(lm_params)})
    state = {**step.init_state(batch), "words_taken": jnp.arange(batch)}
    specs = step.input_specs(Signature("step_tokens", batch))
    inputs = {name: jnp.zeros(spec.shape, spec.dtype) for name, spec in specs.items()}
    inputs |= {name: jnp.full_like(inputs[name], UNGENERATED) for name in ("force_text", "force_codes")}
    inputs |= {"active": jnp.ones(batch, bool), "word_number": jnp.ones(batch, jnp.int32)}
    inputs["word_waiting"] = jnp.ones_like(inputs["word_waiting"])
    inputs["word"] = inputs["word"] + jnp.array([[11, 12], [21, 22], [31, 32], [41, 42]])
    new, out = jax.jit(step.step_tokens)(weights, state, inputs)
    assert out["word_taken"].tolist() == [False, True, True, True, True, False]
    assert new["words_taken"].tolist() == [0, 2, 3, 4, 5, 5]
    assert new["policy/pieces"].tolist() == [[-1, -1], [11, 12], [21, 22], [31, 32], [41, 42], [-1, -1]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"layout": lm.layouts.dialogue(codebooks=5)}, "the codec 4: they must be"),
        ({"card": 64}, "card=64, the codec 32 codes per codebook; use the codec the language model was trained with"),
    ],
)
def test_a_codec_that_does_not_fit_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        CallStep(tiny.CODEC, dataclasses.replace(tiny.LM, **change))

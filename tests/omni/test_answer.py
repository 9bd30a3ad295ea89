"""An answer that streams is the answer of whole sequences: the same tokens and units, the same sound."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax.omni import adapter, answer, prompt, speech_decoder, text_model, vocoder, whisper
from moshijax.omni.prompt import SPEECH, Prompt
from moshijax.omni.spectrogram import log_mel
from tests.omni.small import OMNI, VOCODER, params, vocoder_params

PROMPT = Prompt((1, 1, 5, 9, 3), (7, 2, 11))
TOKENS = 20


def question(seed: int = 0, batch: int = 1) -> np.ndarray:
    return 0.3 * np.random.RandomState(seed).randn(batch, 9000).astype(np.float32)


def functions(weights: dict) -> dict:
    return {
        name: partial(jax.jit(getattr(answer, name), static_argnums=0), OMNI, weights)
        for name in ("encode_speech", "prefill", "decode_token", "decode_units")
    }


def prompt_ids() -> np.ndarray:
    speech = [SPEECH] * answer.speech_rows(OMNI)
    return np.array([[*PROMPT.before, *speech, *PROMPT.after]], np.int32)


def streamed(weights: dict, pcm: np.ndarray, blocks: tuple[int, ...], omega: int):
    """Greedy tokens, units and sound, `omega` new units at a time."""
    step = functions(weights)
    ids, at = prompt_ids(), 0
    state = step["encode_speech"](answer.init_state(OMNI, 1), pcm)
    for size in blocks:
        piece = np.zeros((1, max(blocks)), np.int32)
        piece[:, :size] = ids[:, at : at + size]
        state, logits = step["prefill"](state, piece, np.array([size]))
        at += size
    assert at == ids.shape[1]
    tokens, units, new, pieces = [], [], 0, []
    voice = vocoder.voice(VOCODER, vocoder_params())
    for _ in range(TOKENS):
        tokens.append(int(logits.argmax()))
        state, labels = step["decode_units"](state)
        said = [int(unit) for unit in labels[0] if unit >= 0]
        units, new = units + said, new + len(said)
        voice.feed(said)
        if new >= omega:
            pieces.append(voice.take())
            new = 0
        state, logits = step["decode_token"](state, jnp.array(tokens[-1:]))
    return tokens, units, np.concatenate([*pieces, voice.take(done=True)])


@jax.jit
def states_and_labels(weights: dict, pcm: jax.Array, said: jax.Array):
    """Logits and classes of all states of a question and what was said, in one pass each."""
    mel = log_mel(pcm, 80, answer.clip_samples(OMNI))
    speech = adapter.adapt(OMNI.adapter, weights["adapter"], whisper.encode(OMNI.encoder, weights["encoder"], mel))
    x = prompt.splice(OMNI.text, weights["text"], PROMPT, speech)
    said = text_model.embed(OMNI.text, weights["text"], said)
    hidden = text_model.hidden(OMNI.text, weights["text"], jnp.concatenate([x, said], axis=1))
    states = hidden[:, x.shape[1] - 1 :]
    predicted = text_model.logits(OMNI.text, weights["text"], states)[0].argmax(-1)
    return predicted, speech_decoder.logits(OMNI.decoder, weights["decoder"], states)[0].argmax(-1)


def whole(weights: dict, pcm: np.ndarray, tokens: list[int]):
    """What whole sequences give for the same question and tokens."""
    predicted, labels = map(np.asarray, states_and_labels(weights, pcm, np.array([tokens[:-1]])))
    merged = [int(x) for i, x in enumerate(labels) if i == 0 or x != labels[i - 1]]
    units = np.array([unit for unit in merged if unit != OMNI.decoder.blank])
    lasting = np.asarray(vocoder.durations(VOCODER, vocoder_params(), units[None]))[0]
    sound = vocoder.generate(VOCODER, vocoder_params(), np.repeat(units, lasting)[None])[0]
    return predicted.tolist(), units.tolist(), np.asarray(sound), labels


@pytest.fixture(scope="module")
def weights():
    return params()


@pytest.mark.parametrize(("blocks", "omega"), [((18,), 1), ((7, 10, 1), 4), ((1, 5, 12), 10), ((9, 9), 1000)])
def test_a_streamed_answer_is_the_whole_one(weights, blocks, omega):
    tokens, units, sound = streamed(weights, question(), blocks, omega)
    want_tokens, want_units, want_sound, labels = whole(weights, question(), tokens)
    assert tokens == want_tokens and units == want_units
    np.testing.assert_allclose(sound, want_sound, atol=1e-5)
    # The case is one in which mistakes would show: a unit goes on across the border of two tokens.
    size, blank = OMNI.decoder.upsample, OMNI.decoder.blank
    assert any(a == b != blank for a, b in zip(labels[size::size], labels[size - 1 :: size]))
    assert len(set(tokens)) > 3 and len(set(units)) > 3 and len(labels) > len(units)


def test_a_new_question_forgets_the_last(weights):
    step = functions(weights)
    first = step["encode_speech"](answer.init_state(OMNI, 1), question())
    ids = prompt_ids()
    length = np.array([ids.shape[1]])
    first, logits = step["prefill"](first, ids, length)
    used = answer.init_state(OMNI, 1)
    for seed in (1, 2):
        used = step["encode_speech"](used, question(seed))
        used, _ = step["prefill"](used, ids, length)
        used, _ = step["decode_units"](used)
        used, _ = step["decode_token"](used, np.array([4]))
    used, again = step["prefill"](step["encode_speech"](used, question()), ids, length)
    np.testing.assert_array_equal(logits, again)
    np.testing.assert_array_equal(step["decode_units"](first)[1], step["decode_units"](used)[1])


def test_rows_do_not_see_each_other(weights):
    step = functions(weights)
    pcm, ids = question(3, 2), np.repeat(prompt_ids(), 2, axis=0)
    lengths = np.array([ids.shape[1], ids.shape[1] - 1])
    both, logits = step["prefill"](step["encode_speech"](answer.init_state(OMNI, 2), pcm), ids, lengths)
    for row in range(2):
        alone = step["encode_speech"](answer.init_state(OMNI, 1), pcm[row : row + 1])
        _, want = step["prefill"](alone, ids[:1], lengths[row : row + 1])
        np.testing.assert_allclose(logits[row], want[0], atol=1e-5)

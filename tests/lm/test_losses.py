from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from moshijax import lm
from moshijax.errors import ConfigError
from moshijax.lm import losses
from moshijax.lm.losses import LossConfig
from moshijax.lm.model import LMOutput
from moshijax.lm.scoring import LMScores, score_targets
from moshijax.tokens import EPAD, PAD, ZERO
from tests.lm.models import codes, params, small

LAYOUT = lm.layouts.dialogue(codebooks=2, acoustic_delay=1, score_user=True)
CONFIG = small(LAYOUT)
B, T = 2, 6


def grid_with_padding():
    grid = codes(CONFIG, B, T).at[:, 0, 1:3].set(PAD).at[:, 0, 3].set(EPAD)
    return grid.at[0, 0, 5].set(ZERO).at[1, 1:, 4:].set(ZERO)


def random_output(grid, seed=0):
    random = np.random.RandomState(seed)
    mask = lm.target_mask(CONFIG, grid)
    return LMOutput(
        jnp.asarray(random.standard_normal((B, 4, T, CONFIG.card)), jnp.float32),
        mask[:, 1:],
        jnp.asarray(random.standard_normal((B, 1, T, CONFIG.text_card)), jnp.float32),
        mask[:, :1],
    )


def scores(out, grid):
    parts = score_targets(out.text_logits, grid[:, :1]), score_targets(out.logits, grid[:, 1:5])
    return LMScores(*(jnp.concatenate(pair, axis=1) for pair in zip(*parts, strict=True)))


def nll(logits, targets):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.maximum(np.asarray(targets), 0)[..., None], -1)[..., 0]


def by_definition(name, grid, out):
    """The published formulas in loops."""
    text, audio = nll(out.text_logits[:, 0], grid[:, 0]), nll(out.logits, grid[:, 1:5])
    alpha = [100.0, 1.0, 100.0, 1.0]
    text_terms, word_terms, pad_terms, frames, weighted = [], [], [], [], []
    for b in range(B):
        for t in range(T):
            token = int(grid[b, 0, t])
            if token != ZERO:
                half = token == PAD or (name == "finetune" and token == EPAD)
                text_terms.append(((0.5 if half else 1.0), text[b, t]))
                (pad_terms if token == PAD else word_terms).append(text[b, t])
            present = [q for q in range(4) if out.mask[b, q, t]]
            if present:
                weight = sum(alpha[q] for q in present)
                frames.append(sum(alpha[q] * audio[b, q, t] for q in present) / weight)
                weighted += [(alpha[q], audio[b, q, t]) for q in present]
    if name == "paper":
        return sum(w * c for w, c in text_terms) / len(text_terms) + np.mean(frames)
    audio_loss = sum(w * c for w, c in weighted) / sum(w for w, _ in weighted)
    if name == "finetune":
        return sum(w * c for w, c in text_terms) / sum(w for w, _ in text_terms) + audio_loss
    return np.mean(word_terms) + 0.5 * np.mean(pad_terms) + audio_loss


@pytest.mark.parametrize("name", losses.NORMALISATIONS)
def test_published_normalisations(name):
    grid = grid_with_padding()
    out = random_output(grid)
    got = losses.loss_fn(CONFIG, LossConfig(name), scores(out, grid), grid)
    assert float(got) == pytest.approx(by_definition(name, grid, out), rel=1e-5)


@pytest.mark.parametrize("name", losses.NORMALISATIONS)
def test_microbatches_add_up_to_the_batch(name):
    """Numerators per row over denominators of the whole batch, although the rows have unequal numbers of targets."""
    loss, grid = LossConfig(name), grid_with_padding()
    out = scores(random_output(grid), grid)
    divisors = losses.denominators(CONFIG, loss, grid)
    parts = [
        losses.total(
            loss,
            losses.numerators(CONFIG, loss, jax.tree.map(lambda leaf, b=b: leaf[b : b + 1], out), grid[b : b + 1]),
            divisors,
        )
        for b in range(B)
    ]
    assert float(sum(parts)) == pytest.approx(float(losses.loss_fn(CONFIG, loss, out, grid)), rel=1e-6)


@pytest.mark.parametrize("name", losses.NORMALISATIONS)
def test_batch_without_targets(name):
    grid = jnp.full((1, 5, T), ZERO)
    tree = params(CONFIG)

    def value(tree):
        return losses.loss_fn(CONFIG, LossConfig(name), lm.score(CONFIG, tree, grid), grid)

    loss, grads = jax.jit(jax.value_and_grad(value))(tree)
    assert float(loss) == 0.0
    assert all((leaf == 0).all() for leaf in jax.tree.leaves(grads))


def test_masked_targets_have_no_gradient():
    grid = grid_with_padding()
    out = random_output(grid)

    def value(logits):
        return losses.loss_fn(CONFIG, LossConfig(), scores(out._replace(logits=logits), grid), grid)

    grads = jax.grad(value)(out.logits)
    moved = np.abs(grads).max(-1) > 0
    np.testing.assert_array_equal(moved, out.mask)


def test_unscored_rows_do_not_count():
    streams = tuple(dataclasses.replace(s, scored=s.speaker == "model") for s in LAYOUT.streams)
    config = small(lm.StreamLayout(streams))
    assert config.layout.dep_q == 2
    grid = codes(config, B, T)
    other = grid.at[:, 3:].set(0)
    terms = [losses.terms(config, LossConfig(), g) for g in (grid, other)]
    jax.tree.map(np.testing.assert_array_equal, *terms)


def test_rows_without_a_loss_weigh_nothing():
    """A row that the model generates and is not trained on, and a text row of that kind."""

    def layout(*rows):
        streams = (dataclasses.replace(s, scored=s.scored and k not in rows) for k, s in enumerate(LAYOUT.streams))
        return lm.StreamLayout(tuple(streams))

    grid = grid_with_padding()
    mask = np.asarray(lm.target_mask(CONFIG, grid))[:, 1:]
    for config, alpha in ((CONFIG, [100, 1, 100, 1]), (small(layout(2)), [100, 0, 100, 1])):
        term = losses.terms(config, LossConfig("finetune"), grid)["audio"]
        want = mask * np.array(alpha)[:, None]
        np.testing.assert_array_equal(term.weights, want)
        assert float(term.denominator) == want.sum()
    streams = losses.stream_statistics(small(layout(2)), scores(random_output(grid), grid), grid)
    assert set(streams) == {"text_words", "text_padding", "model_0", "user_0", "user_1"}
    text = losses.terms(small(layout(0)), LossConfig(), grid)["text"]
    assert not text.weights.any() and float(text.denominator) == 0


def test_each_term_has_its_coefficient():
    sums = {"text": jnp.array(10.0), "text_padding": jnp.array(8.0), "audio": jnp.array(6.0)}
    divisors = {"text": jnp.array(5.0), "text_padding": jnp.array(4.0), "audio": jnp.array(2.0)}
    loss = LossConfig("split_padding", text_weight=3.0, audio_weight=7.0, text_padding_weight=0.25)
    assert float(losses.total(loss, sums, divisors)) == 3 * 10 / 5 + 3 * 0.25 * 8 / 4 + 7 * 6 / 2
    assert float(losses.total(loss, sums, {**divisors, "audio": jnp.array(0.0)})) == 3 * 10 / 5 + 1.5 + 7 * 6


def test_text_only_loss():
    grid = grid_with_padding()
    out = scores(random_output(grid), grid)
    loss = LossConfig("finetune")
    sums = losses.numerators(CONFIG, loss, LMScores(out.nll[:, :1], out.correct[:, :1]), grid, text_only=True)
    assert set(sums) == {"text"}
    both = losses.numerators(CONFIG, loss, out, grid)
    assert float(sums["text"]) == pytest.approx(float(both["text"]))
    assert set(losses.denominators(CONFIG, loss, grid, text_only=True)) == {"text"}


def test_cross_entropy_of_large_logits_is_finite():
    logits = jnp.array([[1e4, -1e4, 0.0]], jnp.bfloat16)
    got, _ = score_targets(logits, jnp.array([1]))
    assert got.dtype == jnp.float32 and float(got[0]) == pytest.approx(2e4, rel=1e-2)


def test_of_equal_logits_the_lowest_id_is_the_prediction():
    logits = jnp.array([[1.0, 2.0, 2.0, 0.0]] * 4)
    _, correct = score_targets(logits, jnp.array([1, 2, 0, ZERO]))
    assert correct.tolist() == [True, False, False, False]


def test_stream_statistics():
    grid = grid_with_padding()
    out = random_output(grid)
    found = losses.stream_statistics(CONFIG, scores(out, grid), grid)
    assert set(found) == {"text_words", "text_padding", "model_0", "model_1", "user_0", "user_1"}
    assert float(found["text_padding"]["count"]) == 4 and float(found["text_words"]["count"]) == 7
    assert float(found["model_1"]["count"]) == out.mask[:, 1].sum() == 9
    mask, audio = np.asarray(out.mask), nll(out.logits, grid[:, 1:5])
    assert float(found["user_0"]["nll"]) == pytest.approx(audio[:, 2][mask[:, 2]].sum(), rel=1e-5)
    right = (np.asarray(out.logits).argmax(-1) == np.asarray(grid[:, 1:5])) & mask
    assert float(found["model_0"]["correct"]) == right[:, 0].sum()


def test_bad_loss_configs():
    with pytest.raises(ConfigError, match="normalisation='sum'"):
        LossConfig("sum")
    with pytest.raises(ConfigError, match="semantic_weight=-1"):
        LossConfig(semantic_weight=-1)
    with pytest.raises(ConfigError, match="frames_at_once=0: must be 1 or more, or None for all"):
        LossConfig(frames_at_once=0)


@pytest.mark.parametrize("name", losses.NORMALISATIONS)
@pytest.mark.parametrize("text", [PAD, EPAD, ZERO])
@pytest.mark.parametrize("weights", [{}, {"text_padding_weight": 0.0, "epad_weight": 0.0, "semantic_weight": 0.0}])
def test_batches_of_one_token_have_finite_loss_and_gradient(name, text, weights):
    """Silence all along (one code, no word), text of padding alone, and weights that leave nothing to divide by."""
    grid = jnp.full((B, 5, T), 7).at[:, 0].set(text)
    out = random_output(grid)
    loss = LossConfig(name, **weights)

    def value(logits, text_logits):
        return losses.loss_fn(CONFIG, loss, scores(out._replace(logits=logits, text_logits=text_logits), grid), grid)

    found, grads = jax.value_and_grad(value, (0, 1))(out.logits, out.text_logits)
    assert np.isfinite(found) and float(found) > 0
    assert all(np.isfinite(leaf).all() for leaf in grads)


@pytest.mark.parametrize(("name", "published"), [("paper", 1.0), ("finetune", 0.5), ("split_padding", 1.0)])
def test_epad_has_a_weight_of_its_own(name, published):
    grid = grid_with_padding()

    def weights(**fields):
        parts = losses.terms(CONFIG, LossConfig(name, **fields), grid)
        return parts["text"].weights[0, 0] + (parts["text_padding"].weights[0, 0] if "text_padding" in parts else 0)

    pad = 1.0 if name == "split_padding" else 0.5  # there the whole mean over PAD has the weight
    np.testing.assert_allclose(weights(), [1, pad, pad, published, 1, 0])
    np.testing.assert_allclose(weights(epad_weight=0.75), [1, pad, pad, 0.75, 1, 0])
    assert LossConfig(name, epad_weight=0.0).weight_of_epad == 0.0
    with pytest.raises(ConfigError, match="epad_weight=-1"):
        LossConfig(epad_weight=-1)

"""A Llama or a Qwen2 as temporal transformer of Moshi: from files of Transformers to a step of training."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from moshijax import lm, runtime, weights
from moshijax.errors import ConfigError
from moshijax.export.artifact import build
from moshijax.lm import layouts
from moshijax.lm.model import LanguageModel
from moshijax.lm.transforms import helium_to_moshi
from moshijax.nn.rope import RopeScaling
from moshijax.nn.transformer import Transformer
from moshijax.omni import text_model
from moshijax.omni.config import llama_stack
from moshijax.omni.text_model import TextConfig
from moshijax.testing.tiny import PIECES, tiny_models
from moshijax.tokens import BOS, EOS, EPAD, PAD, ZERO
from moshijax.train.loop import train
from moshijax.weights.omni import save_text_model
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.transfer import export_weights, import_weights
from tests.omni.small import drawn
from tests.train.support.models import LM, lm_experiment, write_lm_data

BEGIN, END = 7, 9
VOCAB = 36  # with the special ids of the grid, those of the tests' tokenizer
#: Rotations of the slowest channels are slowed down within 12 positions.
SCALING = RopeScaling(factor=4.0, original_context=64)
LLAMA = TextConfig(VOCAB, llama_stack(32, 2, 4, 2, 64, max_period=100.0, context=64, rope_scaling=SCALING))
QWEN2 = TextConfig(
    VOCAB,
    dataclasses.replace(
        llama_stack(32, 2, 4, 2, 64, context=64, attention_biases=("q", "k", "v")), norm="rms_norm_1e-6"
    ),
    tied=True,
)
BACKBONES = pytest.mark.parametrize("text", [LLAMA, QWEN2], ids=["llama", "qwen2"])


def written(text, folder, **fields):
    """A text model with random weights, biases too, and its files; returns the weights."""
    random = np.random.RandomState(1)
    params = drawn(text_model.abstract(text, stacked=False), 2.0)
    params = jax.tree_util.tree_map_with_path(
        lambda path, leaf: random.standard_normal(leaf.shape).astype(np.float32) if "bias" in path[-1].key else leaf,
        params,
    )
    save_text_model(text, params, folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps({**config, "bos_token_id": BEGIN, "eos_token_id": [END, 3], **fields})
    )
    return params


def on(text):
    """A small Moshi on this backbone."""
    return dataclasses.replace(LM, text_card=VOCAB + 4, temporal=dataclasses.replace(text.stack, context=10))


def own_logits(text, params, ids):
    """The logits of the text model itself, behind its beginning of a text."""
    before = np.concatenate([np.full((len(ids), 1), BEGIN), ids[:, :-1]], axis=1)
    return text_model.logits(text, params, text_model.hidden(text, params, text_model.embed(text, params, before)))


@BACKBONES
def test_text_logits_are_those_of_the_text_model(text, tmp_path):
    params = written(text, tmp_path / "backbone")
    ids = np.random.RandomState(0).randint(0, VOCAB, (2, 12), np.int32)
    config, flat = weights.load_lm(tmp_path / "backbone")
    assert config.temporal == text.stack and config.text_card == VOCAB + 4
    found = np.asarray(lm.forward(config, flat, ids[:, None] + 4).text_logits)[:, 0]
    want = np.asarray(own_logits(text, params, ids))
    np.testing.assert_allclose(found[..., 4:], want, atol=1e-5)
    assert np.ptp(want, axis=-1).min() > 1  # these are no constants
    np.testing.assert_allclose(found[..., [BOS, EOS]], want[..., [BEGIN, END]], atol=1e-5)
    assert (found[..., [EPAD, PAD]] == 0).all()


@BACKBONES
def test_moshi_begins_with_the_text_logits_of_its_backbone(text, tmp_path):
    """While nothing is said; the window is that of the text model."""
    params = written(text, tmp_path / "backbone")
    source, there = weights.load_lm(tmp_path / "backbone", stacked=True)
    config = on(text)
    fresh = flatten_dict(drawn(lm.abstract(config), 1.0), sep="/")
    made, flat = helium_to_moshi(source, flatten_dict(there, sep="/"), config, fresh)
    assert dataclasses.replace(made, temporal=config.temporal) == config
    ids = np.random.RandomState(0).randint(0, VOCAB, (2, 12), np.int32)
    grid = np.full((2, config.layout.num_streams, 12), ZERO, np.int32)
    grid[:, 0] = ids + 4
    found = np.asarray(lm.forward(made, unflatten_dict(flat, sep="/"), grid).text_logits)[:, 0, :, 4:]
    np.testing.assert_allclose(found, own_logits(text, params, ids), atol=1e-5)


def test_a_run_starts_from_a_text_model(tmp_path):
    written(QWEN2, tmp_path / "backbone")
    _, there = weights.load_lm(tmp_path / "backbone", stacked=True)
    write_lm_data(tmp_path)
    plain = lm_experiment(tmp_path, text=None, steps=1, log_every=1, checkpoint_every=1)
    start = {"init_from": str(tmp_path / "backbone"), "init_transforms": ("helium_to_moshi",)}
    train(dataclasses.replace(plain, task=dataclasses.replace(plain.task, model=on(QWEN2)), **start), tmp_path / "run")
    _, trained, learnt, *_ = load_run(tmp_path / "run")
    assert trained == on(QWEN2) and all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(learnt))
    for part in (("mlp", "up", "kernel"), ("attention", "q_bias")):
        before, after = there["temporal"]["layers"], learnt["temporal"]["layers"]
        for name in part:
            before, after = before[name], after[name]
        assert 0 < np.abs(np.subtract(after, before)).max() < 0.1


@BACKBONES
def test_a_stream_is_what_the_whole_sequence_is(text, tmp_path):
    """The temporal transformer step by step, through the generation state with its caches."""
    written(text, tmp_path / "backbone")
    config, params = weights.load_lm(tmp_path / "backbone")
    ids = np.random.RandomState(0).randint(0, VOCAB, (1, 9)) + 4
    whole = lm.forward(config, params, jnp.asarray(ids[:, None])).text_logits[0, 0]
    module, variables = LanguageModel.streaming(config, params)
    step = jax.jit(lambda state, column: module.apply(variables, state, column, None, method="temporal_step"))
    state = Transformer(config.temporal).init_state(1)
    tokens = np.concatenate([[config.text_card], ids[0, :-1]])
    for n, token in enumerate(tokens):
        column = jnp.asarray([[token]], jnp.int32)
        state, _, logits = step(state, column)
        np.testing.assert_allclose(logits[0], whole[n], atol=1e-4)


@pytest.mark.slow
@BACKBONES
def test_a_moshi_on_it_is_exported_and_called(text, tmp_path):
    codec, _, _ = tiny_models()
    config = dataclasses.replace(on(text), layout=layouts.dialogue(4, 1), card=codec[0].quantizer.bins)
    params = drawn(lm.abstract(config, stacked=False), 2.0)
    made = build(codec, (config, params), PIECES[: config.text_card], tmp_path / "artifact")
    rows = runtime.Rows(runtime.load(made), 1, prompts=False)
    rows.open(runtime.CallOptions(seed=1))
    frames = [rows.step(np.zeros((1, rows.artifact.frame_size), np.float32)) for _ in range(6)]
    assert frames[-1].ready.all() and np.isfinite(frames[-1].pcm).all()
    assert all(0 <= frame.text_token[0] < config.text_card for frame in frames[1:])


@BACKBONES
def test_it_is_imported_and_read_again_but_has_no_published_form(text, tmp_path):
    written(text, tmp_path / "backbone")
    import_weights(tmp_path / "backbone", tmp_path / "imported")
    found, again = weights.load_lm(tmp_path / "imported"), weights.load_lm(tmp_path / "backbone")
    assert found[0] == again[0]
    jax.tree.map(np.testing.assert_array_equal, found[1], again[1])
    with pytest.raises(ConfigError, match="the published form of Moshi has none; keep it"):
        export_weights(open_model(tmp_path / "imported"), tmp_path / "published", "kyutai")


def test_what_does_not_fit_is_said(tmp_path):
    written(LLAMA, tmp_path / "backbone", bos_token_id=None)
    with pytest.raises(ConfigError, match="bos_token_id=None: must be an id below vocab_size=36"):
        open_model(tmp_path / "backbone")
    written(LLAMA, tmp_path / "other")
    write_lm_data(tmp_path)
    plain = lm_experiment(tmp_path, steps=1)
    config = on(LLAMA)
    config = dataclasses.replace(config, temporal=dataclasses.replace(config.temporal, rope_scaling=None))
    task = dataclasses.replace(plain.task, model=config)
    start = {"init_from": str(tmp_path / "other"), "init_transforms": ("helium_to_moshi",)}
    with pytest.raises(ConfigError, match=r"temporal\.rope_scaling=RopeScaling.*this recipe None"):
        train(dataclasses.replace(plain, task=task, **start), tmp_path / "run")

"""Moshi on a Llama: a run starts from it, its tokenizer packs text and places words, and an artifact speaks them."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from moshijax import config
from moshijax.data.encoder import CodecEncoder
from moshijax.data.text import Tokenizer
from moshijax.errors import ConfigError
from moshijax.export import source
from moshijax.lm import configs
from moshijax.omni import text_model
from moshijax.omni.config import LLAMA_31_8B
from moshijax.omni.text_model import TextConfig
from moshijax.testing import tiny
from moshijax.train.loop import train
from moshijax.weights.omni import save_text_model
from moshijax.weights.opening import open_model
from moshijax.weights.run import load_run
from moshijax.weights.run_files import read_metrics
from tests.cli.test_export_and_codec import write_run
from tests.data import backbone_tokenizer
from tests.omni.small import drawn
from tests.train.support.grids import WORDS, write_dialogues, write_text
from tests.train.support.models import batches_of

LLAMA = "Llama-3.1-8B"
#: The text model that the twin's model begins as.
TEXT = TextConfig(
    configs.NANO_LLAMA_ONE_STREAM.text_card - 4,
    dataclasses.replace(configs.NANO_LLAMA_ONE_STREAM.temporal, remat_policy=None, context=64),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The twin trained, in a folder with what it starts from, its data and its codec."""
    path = tmp_path_factory.mktemp("backbone")
    save_text_model(TEXT, drawn(text_model.abstract(TEXT, stacked=False), 1.0), path / LLAMA)
    fields = json.loads((path / LLAMA / "config.json").read_text())
    (path / LLAMA / "config.json").write_text(json.dumps({**fields, "bos_token_id": 5, "eos_token_id": [7]}))
    backbone_tokenizer.write(path / LLAMA / "tokenizer.json", texts=[" ".join(WORDS)])
    mimi, params = jax.tree.map(
        lambda leaf: jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf, tiny.tiny_models()[0]
    )
    write_run(path / "codec", "codec", mimi, params["params"], params["codebooks"])
    sha256 = CodecEncoder.load(path / "codec").sha256
    (path / "prepared").mkdir()
    write_dialogues(path / "prepared" / "mixed", count=12, codebooks=2, channels=("mixed",), codec=sha256)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        for name in ("backbone_text", "backbone_text_heldout"):
            write_text(path / "prepared" / name, Tokenizer.load(LLAMA))
        train(config.load("nano/backbone.gin"), path / "runs" / "backbone")
    return path


def test_the_full_model_is_moshi_on_llama():
    full, small = config.load("moshi/backbone.gin"), config.load("nano/backbone.gin")
    model = full.task.model
    theirs = dataclasses.replace(LLAMA_31_8B.stack, context=3000, dtype="bfloat16", remat_policy="full")
    assert model.temporal == theirs and model.text_card == 4 + LLAMA_31_8B.vocab
    moshi = config.load("moshi/pretraining.gin")
    assert dataclasses.replace(model, temporal=moshi.task.model.temporal, text_card=32000) == moshi.task.model
    assert (full.init_from, full.init_transforms) == (LLAMA, ("helium_to_moshi",))
    assert (small.init_from, small.init_transforms) == (full.init_from, full.init_transforms)
    assert small.task.loss == full.task.loss and small.task.tokenizer == full.task.tokenizer
    for ours, others in zip(small.task.step_kinds(), full.task.step_kinds(), strict=True):
        assert (ours.name, ours.share, ours.data.paths) == (others.name, others.share, others.data.paths)


def test_it_learns_and_keeps_the_tokenizer(folder):
    run = folder / "runs" / "backbone"
    lines = read_metrics(run / "metrics.jsonl")
    for name in ("train/loss", "train_text/loss"):
        found = [line[name] for line in lines if name in line]
        assert found[-1] < found[0], name
    assert (run / "tokenizer.json").read_bytes() == (folder / LLAMA / "tokenizer.json").read_bytes()
    assert load_run(run).tokenizer == run / "tokenizer.json" and not (run / "tokenizer.model").exists()


def test_words_are_placed_as_ids_of_the_backbone(folder, monkeypatch):
    monkeypatch.chdir(folder)
    tokenizer = Tokenizer.load(LLAMA)
    codes = np.asarray(batches_of(config.load("nano/backbone.gin"), "audio").batch(0)["codes"])
    said = codes[:, 0][codes[:, 0] > 3]
    words = {id_ for word in WORDS for id_ in tokenizer.encode(word)}
    assert len(said) > 20 and set(said.tolist()) <= words


def test_an_artifact_speaks_its_pieces(folder):
    run = folder / "runs" / "backbone"
    found = source.load(run, folder / "codec")
    tokenizer = Tokenizer.load(folder / LLAMA)
    assert found.pieces == tokenizer.pieces and found.use["tokenizer"] is None
    with pytest.raises(ConfigError, match=r"has a tokenizer.json, and a synthesis is given text by a SentencePiece"):
        source.load(run, folder / "codec", policy="synthesis")


def test_imported_weights_keep_it(folder, cli, tmp_path):
    code, _, err = cli("weights", "import", folder / LLAMA, tmp_path / "imported")
    assert code == 0, err
    assert open_model(tmp_path / "imported").tokenizer == tmp_path / "imported" / "tokenizer.json"
    before = flatten_dict(open_model(folder / LLAMA).parameters().tree())
    after = flatten_dict(open_model(tmp_path / "imported").parameters().tree())
    jax.tree.map(np.testing.assert_array_equal, before, after)

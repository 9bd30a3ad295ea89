"""The prompt, with a tokenizer of Llama 3's form that is made here: bytes as pieces, its special tokens."""

from __future__ import annotations

import dataclasses
import json

import jax
import numpy as np
import pytest

from moshijax.errors import ConfigError, DataError
from moshijax.omni import prompt, text_model
from moshijax.omni.config import llama_stack
from moshijax.omni.text_model import TextConfig

SPECIAL = (prompt.BEGIN, prompt.HEADER, prompt.HEADER_END, prompt.TURN_END)
CONFIG = TextConfig(260, llama_stack(16, 1, 2, 1, 24, context=600))


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    import tokenizers
    from tokenizers import models, pre_tokenizers, processors

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(SPECIAL))
    # It puts the beginning of a text in front of everything, as that of Llama 3 does.
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{prompt.BEGIN} $A", special_tokens=[(prompt.BEGIN, tokenizer.token_to_id(prompt.BEGIN))]
    )
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    tokenizer.save(str(path))
    return path


def test_the_published_prompt(file):
    tokenizer = prompt.load_tokenizer(file.parent, CONFIG.vocab)
    made = prompt.make_prompt(tokenizer)
    begin = tokenizer.token_to_id(prompt.BEGIN)
    assert made.before[:2] == (begin, begin) and made.ids.count(begin) == 2
    assert made.ids.count(prompt.SPEECH) == 1 and made.ids.index(prompt.SPEECH) == len(made.before)
    # The alphabet of byte pieces has letters of its own for a space and a new line.
    pieces = "".join(map(tokenizer.id_to_token, (*made.before[1:], *made.after)))
    assert pieces.replace("\u0120", " ").replace("\u010a", "\n") == (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\n"
        "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
        "provides, and assist the user with a variety of tasks using natural language.<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n"
        "\nPlease directly answer the questions in the user's speech.<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_speech_stands_between_the_texts(file):
    made = prompt.make_prompt(prompt.load_tokenizer(file, CONFIG.vocab), system="Hi.")
    params = text_model.init(CONFIG, jax.random.key(0), False)
    speech = np.random.RandomState(0).standard_normal((2, 300, 16)).astype(np.float32)
    x = np.asarray(prompt.splice(CONFIG, params, made, speech))
    assert x.shape == (2, len(made.ids) + 299, 16)
    start = len(made.before)
    np.testing.assert_array_equal(x[:, start : start + 300], speech)
    table = np.asarray(params["table"])
    np.testing.assert_array_equal(x[1, :start], table[list(made.before)])
    np.testing.assert_array_equal(x[1, start + 300 :], table[list(made.after)])
    rows = prompt.speech_rows(16000 * 3)
    assert prompt.splice(CONFIG, params, made, speech[:, :rows]).shape[1] == len(made.ids) + 29


@pytest.mark.parametrize(("seconds", "rows"), [(30, 300), (3, 30), (0.1, 1), (29.99, 300), (29.98, 299)])
def test_rows_of_a_recording(seconds, rows):
    assert prompt.speech_rows(round(16000 * seconds)) == rows


@pytest.mark.parametrize("seconds", [0, 0.05, 30.1])
def test_a_recording_that_no_row_or_no_clip_holds_is_refused(seconds):
    with pytest.raises(DataError, match="0.1 to 30 s long"):
        prompt.speech_rows(round(16000 * seconds))


def test_what_does_not_fit_the_text_model_is_refused(file, tmp_path):
    with pytest.raises(DataError, match="ids up to 259, the text model has 256"):
        prompt.load_tokenizer(file, 256)
    with pytest.raises(DataError, match="is not there"):
        prompt.load_tokenizer(tmp_path, 300)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match="no tokenizer"):
        prompt.load_tokenizer(tmp_path, 300)
    fields = json.loads(file.read_text())
    fields["added_tokens"] = fields["added_tokens"][:1]
    (tmp_path / "tokenizer.json").write_text(json.dumps(fields))
    with pytest.raises(DataError, match="of no llama3"):
        prompt.load_tokenizer(tmp_path, 300)
    with pytest.raises(DataError, match=r"lacks <\|im_start\|>, <\|im_end\|>: it is of no qwen2"):
        prompt.load_tokenizer(file, CONFIG.vocab, "qwen2")
    made = prompt.make_prompt(prompt.load_tokenizer(file, CONFIG.vocab))
    small = dataclasses.replace(CONFIG, vocab=200)
    with pytest.raises(ConfigError, match="must be 0 to 199"):
        prompt.splice(small, {}, made, np.zeros((1, 300, 16), np.float32))
    with pytest.raises(ConfigError, match="16 wide"):
        prompt.splice(CONFIG, {}, made, np.zeros((1, 300, 8), np.float32))

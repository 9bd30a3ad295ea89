"""Text benchmarks on a model whose likelihoods are known: by hand, and through the harness where it is installed."""

from __future__ import annotations

import json

import numpy as np
import pytest

from moshijax import lm, optional
from moshijax.data.text import train_tokenizer
from moshijax.errors import ConfigError
from moshijax.eval import text_benchmarks
from moshijax.eval.text_benchmarks import Likelihoods, TextBenchmarks
from moshijax.tokens import BOS
from tests.eval.saved_models import save, unigram

WORDS = ("yes", "no", "maybe")
LENGTHS = ((3, 2), (66, 1), (80, 5), (0, 3))


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A tokenizer, and a model to which "yes" is always likelier than "no", and "no" than "maybe"."""
    folder = tmp_path_factory.mktemp("text")
    tokenizer = train_tokenizer([" ".join(WORDS) + " is it so"] * 50, 24, byte_fallback=False)
    logits = np.zeros(48, np.float32)
    for bonus, word in zip((3.0, 2.0, 1.0), WORDS):
        logits[tokenizer.encode(word)] = bonus
    config, params = unigram(lm.layouts.single_stream(3, 1), np.zeros((3, 32), np.float32), logits)
    save(folder / "model", "lm", config, params)
    tokenizer.save(folder / "tokenizer.model")
    return folder, tokenizer, config, params, logits - np.log(np.exp(logits).sum())


def test_likelihoods_are_sums_over_the_continuation(world):
    _, tokenizer, config, params, logs = world
    model = Likelihoods(config, params, longest=70)
    rng = np.random.default_rng(0)
    pairs = [
        ([BOS, *rng.integers(4, 20, n)], rng.integers(4, 20, m).tolist()) for n, m in ((3, 2), (66, 1), (80, 5), (0, 3))
    ]
    found = model.of([*pairs, ([BOS], [int(logs.argmax())] * 2)])
    for (_, continuation), (log_likelihood, greedy) in zip(pairs, found):
        assert log_likelihood == pytest.approx(logs[continuation].sum(), rel=1e-4) and not greedy
    assert found[-1] == (pytest.approx(2 * logs.max(), rel=1e-4), True)


ASKED = "is it so"


CHOICE = """task: known_choice
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/questions.jsonl}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: choices
doc_to_target: answer
metric_list: [{{metric: acc}}]
metadata: {{version: 1.0}}
"""
PERPLEXITY = """task: known_text
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/texts.jsonl}}}}
output_type: loglikelihood_rolling
test_split: test
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list: [{{metric: word_perplexity}}]
metadata: {{version: 2.0}}
"""


def test_the_harness_finds_the_known_answers(world, tmp_path, cli, monkeypatch):
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder, tokenizer, _, _, logs = world
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    (tasks / "choice.yaml").write_text(CHOICE.format(folder=tmp_path))
    (tasks / "text.yaml").write_text(PERPLEXITY.format(folder=tmp_path))
    begun = len(tokenizer.encode(ASKED))
    # The likelier one is right in three of four questions.
    order = sorted(WORDS, key=lambda word: -logs[tokenizer.encode(f"{ASKED} {word}")[begun:]].sum())
    rows = [{"question": ASKED, "choices": order[:2], "answer": 0}] * 3
    rows.append({"question": ASKED, "choices": order[1:], "answer": 1})
    (tmp_path / "questions.jsonl").write_text("\n".join(map(json.dumps, rows)) + "\n")
    text = "yes no maybe yes"
    (tmp_path / "texts.jsonl").write_text(json.dumps({"text": text}) + "\n")
    fields = {"model": folder / "model", "tokenizer": folder / "tokenizer.model", "folder": tasks}
    arguments = [f"--gin.evaluation.{name}={value}" for name, value in fields.items()]
    arguments.append("--gin.evaluation.tasks=('known_choice', 'known_text')")
    code, _, err = cli("eval", "eval/text_benchmarks.gin", "--out", tmp_path / "out", *arguments)
    assert code == 0, err
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    assert found["values"]["known_choice/acc"] == 0.75 and len(found["calls"]["known_choice/acc"]) == 4
    expected = np.exp(-logs[tokenizer.encode(text)].sum() / 4)
    assert found["values"]["known_text/word_perplexity"] == pytest.approx(expected, rel=1e-3)
    assert found["provenance"]["judges"].keys() == {"lm_eval"} and found["provenance"]["tasks"]["known_text"] == 2.0
    with pytest.raises(ConfigError, match="the harness knows no task nothing"):
        TextBenchmarks(str(folder / "model"), ("nothing",), str(folder / "tokenizer.model")).run(tmp_path)


def test_what_is_missing_is_named(world, tmp_path, monkeypatch, cli):
    folder = world[0]

    def absent(module):
        raise optional.missing(module)

    with monkeypatch.context() as patch:
        patch.setattr(optional, "load", absent)
        code, _, err = cli("eval", "eval/text_benchmarks.gin", "--out", tmp_path)
        assert code == 1 and "moshijax[benchmarks]" in err
    monkeypatch.setattr(text_benchmarks.optional, "load", lambda module: None)
    with pytest.raises(ConfigError, match="comes without a tokenizer; give the one"):
        TextBenchmarks(str(folder / "model"), ("any",)).run(tmp_path)
    with pytest.raises(ConfigError, match="name a task"):
        TextBenchmarks("model", ())

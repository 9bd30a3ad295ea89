"""Prepared questions and answers, in the format of `moshijax data exchanges`, and a tokenizer of Llama 3's form."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from moshijax import files
from moshijax.data import records
from moshijax.data.speech_units import merged
from moshijax.omni import prompt
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.optimizer import OptimizerConfig

WORDS = ("red", "blue", "green", "yes")


def write_tokenizer(path: Path) -> None:
    """Bytes as pieces, and the special tokens of a prompt."""
    import tokenizers
    from tokenizers import models, pre_tokenizers

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = tokenizers.Tokenizer(models.BPE({piece: i for i, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(list(prompt.SPECIAL_TOKENS["llama3"]))
    tokenizer.save(str(path))


def exchange(number: int, units: int = 20) -> dict:
    """A question whose bands say which word answers it, and which units speak it; every fifth is not answered."""
    word, random = number % len(WORDS), np.random.default_rng(number)
    mel = random.normal(0, 0.1, (80 + number % 40, 80)).astype(np.float16)
    mel[:, 20 * word : 20 * word + 20] += 1
    answered = number % 5 != 4
    spoken = np.repeat((np.arange(6) * (word + 1) + word) % units, 1 + number % 3).astype(np.int16)
    return {
        "id": str(number),
        "mel": mel,
        "quiet": -1.5,
        "samples": 160 * (len(mel) - 2),
        "question": f"what is {word}",
        "answer": WORDS[word] if answered else "",
        "units": spoken if answered else spoken[:0],
        "provenance": {},
    }


def write_exchanges(folder: Path, count: int = 24, units: int = 20, centroids: str = "0" * 64) -> None:
    folder.mkdir(parents=True)
    found = [exchange(number, units) for number in range(count)]
    name = records.shard_name(0, 1)
    records.write_shard(folder / name, found)
    notes = [[record["samples"], len(merged(record["units"])), record["answer"]] for record in found]
    index = {
        "format_version": records.FORMAT_VERSION,
        "kind": "exchanges",
        "bands": 80,
        "sample_rate": 16000,
        "units": {"sha256": centroids, "source": "made up", "count": units, "rate": 50},
        "speech": False,
        "shards": [{"file": name, "records": count, "exchanges": notes}],
        "sha256": records.digest("made up", count, units),
    }
    files.write_json(folder / records.EXCHANGES, index)


def write_data(folder: Path) -> None:
    """All that the tiny twins of the recipes read, where they look for it."""
    write_tokenizer(folder / "tokenizer.json")
    write_exchanges(folder / "exchanges" / "train")
    write_exchanges(folder / "exchanges" / "heldout", count=8)


def omni_experiment(folder: Path, steps: int = 12, **task) -> ExperimentConfig:
    """The tiny model on data of `write_data`; `task` changes fields of the task."""
    from moshijax.data.exchange_batches import ExchangeData
    from moshijax.omni import configs
    from moshijax.train.tasks.omni import ExchangeSteps, OmniTask

    data = ExchangeData(
        (str(folder / "exchanges" / "train"),), batch_size=8, num_tokens=144, answer_tokens=24, num_units=48
    )
    fields = dict(stage="joint", system="Answer.", question="Now.")
    made = OmniTask(
        **{
            **{"model": configs.NANO, "tokenizer": str(folder / "tokenizer.json"), "exchanges": ExchangeSteps(data)},
            **fields,
            **task,
        }
    )
    optimizer = OptimizerConfig(learning_rate=1e-2, decay="constant", weight_decay=0.0)
    return ExperimentConfig(task=made, optimizer=optimizer, steps=steps, log_every=4, checkpoint_every=4)

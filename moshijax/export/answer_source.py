"""What the artifact of a LLaMA-Omni is built from: published weights, or a run of our own training."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from moshijax.config_json import from_json
from moshijax.errors import ConfigError
from moshijax.export.answer import AnswerText, answer_text
from moshijax.omni.config import OmniConfig
from moshijax.omni.prompt import QUESTION, SYSTEM, load_tokenizer
from moshijax.weights import omni
from moshijax.weights.opening import open_model
from moshijax.weights.run import is_run
from moshijax.weights.run_files import CONFIG, read_record


class AnswerSource(NamedTuple):
    """A model, and how it was trained to be asked: arguments of `moshijax.export.answer.build`.

    Attributes:
      model: config and parameters.
      text: what stands around a question, and the text pieces.
      trim: questions are trimmed to the recording.
    """

    model: tuple[OmniConfig, Any]
    text: AnswerText
    trim: bool


def load(path: str | Path, tokenizer: str | Path | None = None) -> AnswerSource:
    """Read a LLaMA-Omni and what belongs to it.

    Args:
      path: a directory of published weights, or the run directory of `moshijax train`; the prompt and `trim` of a run
        are those that it was trained with, and low-rank updates are part of the weights.
      tokenizer: `tokenizer.json` or its folder; by default the one beside the weights.

    Raises:
      ConfigError: the run has not trained the speech decoder.
      DataError: weights or tokenizer are missing, damaged, or of another model.
    """
    path = Path(path)
    if not is_run(path):
        model = omni.load_llama_omni(path)
        return AnswerSource(model, answer_text(load_tokenizer(tokenizer or path, model[0].text.vocab)), False)
    task = from_json(dict[str, Any], read_record(path / CONFIG), str(path / CONFIG)).get("task", {})
    if task.get("stage") == "text":
        raise ConfigError(
            f"{path} has trained the text of answers alone, so its speech decoder says nothing: train stage 2 from it "
            "(omni/speech.gin), and export that run"
        )
    opened = open_model(path, "omni")
    pieces = load_tokenizer(tokenizer or path, opened.config.text.vocab)
    text = answer_text(pieces, task.get("system", SYSTEM), task.get("question", QUESTION))
    trim = bool(task.get("exchanges", {}).get("data", {}).get("trim", False))
    return AnswerSource((opened.config, opened.parameters(stacked=False).tree()), text, trim)

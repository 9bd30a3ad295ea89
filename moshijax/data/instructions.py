"""Instruction sets, which are written, to scripts of dialogues, which are spoken.

As LLaMA-Omni's data was made (arXiv 2409.06666, 3.1), by rules in place of a language model: spoken forms
(`moshijax.data.spoken`), fillers in moderation, short answers, and nothing that cannot be said. Of a conversation the
first question and its answer are used, as there of UltraChat.
"""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moshijax import files
from moshijax.data.ranges import check_probabilities
from moshijax.data.spoken import UNSPEAKABLE, spoken
from moshijax.errors import DataError, require

#: Names of files that hold instructions.
SUFFIXES = (".json", ".jsonl")
_FILLERS = ("Hey, ", "So, ", "Um, ", "Uh, ", "Well, ")
_ASKING = {"human": 0, "user": 0, "prompter": 0, "gpt": 1, "assistant": 1, "model": 1}


@dataclass(frozen=True)
class SpokenRules:
    """Which entries become dialogues.

    Attributes:
      question_words: an instruction with its input has at most so many.
      answer_words: an answer too; what comes after the last sentence that fits is left out and counted.
      fillers: probability that a question begins with a filler word.
      seed: of these draws, which depend on it and the number of the entry.
    """

    question_words: int = 40
    answer_words: int = 60
    fillers: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("question_words", "answer_words"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}: use at least 1")
        check_probabilities(self, "fillers")


@dataclass
class SpokenReport:
    """What became of instructions.

    Attributes:
      entries: all of them.
      rejected: entries without a dialogue, by reason: "form", "empty", "long", "duplicate", and those of `UNSPEAKABLE`.
      shortened: answers that lost sentences.
      sentences: that they lost.
      removed: from those that were kept, by kind (`Spoken.removed`).
      turns: of conversations, those after the first question and answer.
    """

    entries: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    shortened: int = 0
    sentences: int = 0
    removed: Counter[str] = field(default_factory=Counter)
    turns: int = 0


@dataclass(frozen=True)
class Exchange:
    """A question and its answer, as they are said.

    Attributes:
      id: of the dialogue.
      question: of the user.
      answer: of the model.
    """

    id: str
    question: str
    answer: str


def exchanges(entries: Iterable[Any], rules: SpokenRules, report: SpokenReport) -> Iterator[Exchange]:
    """Turn entries into questions and answers, and count into a report.

    Args:
      entries: {"instruction", "input", "output"}, as Alpaca has them; {"conversations": [{"from", "value"}]}, as
        ShareGPT; {"messages": [{"role", "content"}]}; or {"data": [question, answer, ...]}, as UltraChat.
      rules: which of them are used.
      report: is added to.
    """
    seen: set[str] = set()
    for number, entry in enumerate(entries):
        report.entries += 1
        made = _exchange(entry, rules, random.Random(f"{rules.seed} {number}"), seen)
        if isinstance(made, str):
            report.rejected[made] += 1
            continue
        question, answer, lost, removed, turns = made
        report.shortened += lost > 0
        report.sentences += lost
        report.removed += removed
        report.turns += turns
        yield Exchange(f"instruction-{number:06d}", question, answer)


def _written(entry: Any) -> tuple[str, str, str, int] | None:
    """Return instruction, input and output of an entry, and how many turns follow; None: it has no such form."""
    if not isinstance(entry, dict):
        return None
    if "instruction" in entry:
        parts = [entry["instruction"], entry.get("input") or "", entry.get("output")]
        return (*parts, 0) if all(isinstance(part, str) for part in parts) else None
    if isinstance(entry.get("data"), list):
        turns = list(entry["data"])
    else:
        turns = _turns(entry.get("conversations"), "from", "value") or _turns(entry.get("messages"), "role", "content")
    if len(turns) < 2 or not all(isinstance(turn, str) for turn in turns[:2]):
        return None
    return turns[0], "", turns[1], len(turns) - 2


def _turns(messages: Any, who: str, what: str) -> list[Any]:
    """Return the texts of a conversation that begins with a question, without a system's; [] if it is none."""
    if not isinstance(messages, list) or not all(isinstance(message, dict) for message in messages):
        return []
    spoken_by = [(_ASKING.get(str(m.get(who)), -1), m.get(what)) for m in messages if m.get(who) != "system"]
    return [text for _, text in spoken_by] if [side for side, _ in spoken_by[:2]] == [0, 1] else []


def _exchange(
    entry: Any, rules: SpokenRules, rng: random.Random, seen: set[str]
) -> str | tuple[str, str, int, Counter[str], int]:
    """Return question, answer, sentences left out, what was removed and turns left out; or why there is none."""
    written = _written(entry)
    if written is None:
        return "form"
    instruction, more, output = map(spoken, written[:3])
    question = _join(instruction.text, more.text)
    removed = instruction.removed + more.removed + output.removed
    for kind in UNSPEAKABLE:
        if removed[kind]:
            return kind
    if not question or not output.text:
        return "empty"
    if question in seen:
        return "duplicate"
    seen.add(question)
    answer, lost = _shorten(output.text, rules.answer_words)
    if len(question.split()) > rules.question_words or not answer:
        return "long"
    if rng.random() < rules.fillers:
        question = rng.choice(_FILLERS) + question
    return question, answer, lost, removed, written[3]


def _join(first: str, second: str) -> str:
    if first and second and first[-1] not in ".?!":
        first += "."
    return f"{first} {second}".strip()


def _shorten(text: str, most: int) -> tuple[str, int]:
    """Return as many whole sentences as have at most so many words, and the number of the others."""
    sentences = re.findall(r"[^.?!]+[.?!]*", text)
    words = 0
    for count, sentence in enumerate(sentences):
        words += len(sentence.split())
        if words > most:
            return "".join(sentences[:count]).strip(), len(sentences) - count
    return text, 0


def read(path: Path, rules: SpokenRules = SpokenRules()) -> tuple[list[Exchange], SpokenReport]:
    """Read a JSON list of entries, or a file of JSON lines.

    Raises:
      DataError: the file is neither, or no entry becomes a dialogue.
    """
    report = SpokenReport()
    found = list(exchanges(_entries(path), rules, report))
    if not found:
        raise DataError(
            f"none of the {report.entries} entries of {path} becomes a dialogue ({dict(report.rejected)}): "
            'give objects with "instruction", "input" and "output", or conversations'
        )
    return found, report


def _entries(path: Path) -> list[Any]:
    text = files.read_text(path)
    try:
        if path.suffix == ".jsonl":
            return [json.loads(line) for line in files.lines(text) if line.strip()]
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path} is not JSON ({error}): give a list of instructions, or lines in a .jsonl") from error
    if not isinstance(entries, list):
        raise DataError(f"{path} holds a {type(entries).__name__}: give a list of instructions")
    return entries


def write_script(found: Iterable[Exchange], out: Path) -> None:
    """Write a script of dialogues, as `moshijax data synthesize` reads it."""
    files.write(out, "\n".join(f"== {e.id}\nuser: {e.question}\nmodel: {e.answer}\n" for e in found))

"""Sets of spoken questions with accepted answers: tables of published benchmarks, and recordings with sidecars."""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from moshijax import files
from moshijax.data.manifest import read_manifest
from moshijax.data.transcript import read_sidecar
from moshijax.errors import DataError
from moshijax.eval.calls import normalise

#: Columns of a table, by what they hold; capitals and a plural s do not matter.
COLUMNS = {"recording": ("audio_filename", "audio_path", "audio"), "question": ("question", "instruction", "query"),
           "answer": ("answer", "aliases", "reference")}  # fmt: skip
#: Where the recordings of a table are, relative to it.
FOLDERS = ("audios", ".")


@dataclass(frozen=True)
class OpenQuestion:
    """A question that may be answered in many ways.

    Attributes:
      id: of the question.
      audio: recording of it, and of nothing behind it.
      asked: text of the question, "" where the set does not say it.
      answers: any of which is right; the first is shown.
    """

    id: str
    audio: Path
    asked: str
    answers: tuple[str, ...]

    def accepts(self, said: str) -> bool:
        """Whether the words of an accepted answer are in what was said, one after the other."""
        words = normalise(said)
        return any(_contains(words, normalise(answer)) for answer in self.answers)


def _contains(words: tuple[str, ...], wanted: tuple[str, ...]) -> bool:
    return any(words[n : n + len(wanted)] == wanted for n in range(len(words) - len(wanted) + 1))


def read_questions(path: str | Path) -> tuple[list[OpenQuestion], str]:
    """Read a set, and the sha256 of what it says.

    A table (`.csv`) has a row for every question, as the sets of OpenAudioBench do: Llama Questions, Web Questions and
    TriviaQA. A cell with several answers is a list in JSON or Python. Anything else is a manifest whose sidecars have a
    "meta" with "question" and "answer", a text or a list.

    Raises:
      DataError: it cannot be read, a question has no answer, or recordings are not there.
    """
    path = Path(path)
    found = _table(path) if path.suffix.lower() == ".csv" else _manifest(path)
    if not found:
        raise DataError(f"{path} holds no questions; give a table with a row for each, or a manifest")
    if empty := [one.id for one in found if not one.answers]:
        raise DataError(
            f"{path}: {len(empty)} questions have no answer, such as {empty[0]}: add answers, or remove them"
        )
    if missing := [one.audio for one in found if not one.audio.is_file()]:
        raise DataError(f"{path}: {len(missing)} recordings are not there, such as {missing[0]}; fetch them beside it")
    said = json.dumps([(one.id, one.asked, one.answers) for one in found])
    return found, hashlib.sha256(said.encode()).hexdigest()


def _table(path: Path) -> list[OpenQuestion]:
    rows = list(csv.DictReader(io.StringIO(files.read_text(path, "table of questions"), newline="")))
    header = list(rows[0]) if rows else []
    by_name = {(name or "").strip().lower().rstrip("s"): name for name in reversed(header)}
    columns = {}
    for what, names in COLUMNS.items():
        columns[what] = next((by_name[name.rstrip("s")] for name in names if name.rstrip("s") in by_name), None)
        if rows and columns[what] is None and what != "question":
            raise DataError(
                f"{path} has the columns {', '.join(map(str, header))}, none for the {what}: name one {names[0]}"
            )
    found = []
    for number, row in enumerate(rows, 1):
        name = (row[columns["recording"]] or "").strip()
        audio = next((at for folder in FOLDERS if (at := path.parent / folder / name).is_file()), path.parent / name)
        asked = (row[columns["question"]] or "") if columns["question"] else ""
        found.append(OpenQuestion(f"{number} {Path(name).stem}", audio, asked, _answers(row[columns["answer"]])))
    return found


def _manifest(path: Path) -> list[OpenQuestion]:
    found = []
    for item in read_manifest(path).items:
        meta = read_sidecar(item.sidecar).get("meta")
        if not isinstance(meta, dict) or not {"question", "answer"} <= meta.keys():
            raise DataError(f'{item.sidecar} has no "meta" with "question" and "answer"; add them, or use another set')
        found.append(OpenQuestion(item.id, item.audio, str(meta["question"]), _answers(meta["answer"])))
    return found


def _answers(cell: object) -> tuple[str, ...]:
    """The answers that a cell lists, each once, those with words alone."""
    if isinstance(cell, str) and cell.strip()[:1] in ("[", "(", "{"):
        for read in (json.loads, ast.literal_eval):
            try:
                cell = read(cell)
                break
            except (ValueError, SyntaxError, RecursionError, MemoryError):
                continue  # a text that begins with a bracket
    if isinstance(cell, dict):  # as TriviaQA has them
        cell = [cell.get("value", ""), *cell.get("aliases", ())]
    several = cell if isinstance(cell, Iterable) and not isinstance(cell, str) else [cell]
    return tuple(dict.fromkeys(str(one) for one in several if one is not None and normalise(str(one))))

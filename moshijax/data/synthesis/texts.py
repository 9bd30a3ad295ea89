"""The text format of scripts in `data/<set>/*.txt`, and its parser.

A file holds dialogues:

    # a comment
    == rain-1                       a new dialogue, with its id
    voice user: en-us+f3 rate=160 pitch=60
    lead 0.5                        seconds of quiet before the first word; also `tail`, `duration`, `gain`, `snr`
    user: Will it rain today?       a turn; starts 0.3 s after the last turn
    model +0.1: It might.           a turn that starts 0.1 s after the last turn (-0.2 overlaps it)
    user @0.5: right.               a backchannel at half of the last turn
    user !0.6: And tomorrow?        an interruption at 0.6 of the last turn, whose speaker then stops

A `voice` line without values after the colon, or no line at all, gives the user a random voice in every call; the
model keeps one voice.
"""

from __future__ import annotations

import random
import re
from dataclasses import replace
from pathlib import Path

from moshijax.data.synthesis.dialogue import Dialogue, Utterance, Voice
from moshijax.data.synthesis.voices import random_voice
from moshijax.errors import DataError

MODEL_VOICE = Voice("en-us", "f4", 165, 50, 50)
_UTTERANCE = re.compile(r"^(model|user)\s*(?:([@!+-])\s*([0-9.]+))?\s*:\s*(.+)$")
_VOICE = re.compile(r"^voice\s+(model|user)\s*:\s*(.*)$")
_NUMBER = re.compile(r"^(lead|tail|duration|gain|snr)\s+(-?[0-9.]+)$")
_FIELDS = {"gain": "gain_db", "snr": "snr_db"}


def parse_voice(text: str) -> Voice:
    """Read `language[+variant] [rate=N] [pitch=N] [range=N]`.

    Raises:
      DataError: another setting, or a value out of range.
    """
    name, *settings = text.split()
    language, _, variant = name.partition("+")
    values: dict[str, int] = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        if key not in ("rate", "pitch", "range") or not value.isdigit():
            raise DataError(f"voice setting {setting!r}: write rate=, pitch= or range= and a whole number")
        values[key] = int(value)
    return Voice(language, variant, **values)


def _utterance(match: re.Match[str]) -> Utterance:
    speaker, mark, number, text = match.groups()
    if mark is None:
        return Utterance(speaker, text)
    value = float(number)
    if mark in "+-":
        return Utterance(speaker, text, gap=value if mark == "+" else -value)
    return Utterance(speaker, text, kind="backchannel" if mark == "@" else "interruption", at=value)


def parse(text: str, where: str = "text", seed: int = 0) -> list[Dialogue]:
    """Parse the dialogues of a script.

    Args:
      text: the script.
      where: its name in messages.
      seed: draws the users' voices where none is written.

    Raises:
      DataError: a line that is none of the forms above, with its number.
    """
    dialogues: list[Dialogue] = []
    block: dict | None = None

    def finish() -> None:
        if block is not None:
            fields = {key: value for key, value in block.items() if value is not None}
            fields.setdefault("user_voice", random_voice(random.Random(f"{seed} {fields['id']}")))
            dialogues.append(Dialogue(**{**fields, "utterances": tuple(fields["utterances"])}))

    for number, raw in enumerate(text.splitlines(), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("=="):
                finish()
                block = {"id": line[2:].strip(), "utterances": [], "model_voice": MODEL_VOICE}
            elif block is None:
                raise DataError("text before the first '== id' line: begin a dialogue with one")
            elif match := _VOICE.match(line):
                if match[2]:
                    block[f"{match[1]}_voice"] = parse_voice(match[2])
            elif match := _NUMBER.match(line):
                block[_FIELDS.get(match[1], match[1])] = float(match[2])
            elif match := _UTTERANCE.match(line):
                block["utterances"].append(_utterance(match))
            else:
                raise DataError(f"{line[:60]!r} is not a line of a dialogue: write 'user: words' or 'model: words'")
        except (DataError, ValueError) as error:
            raise DataError(f"{where}, line {number}: {error}") from error
    try:
        finish()
    except DataError as error:
        raise DataError(f"{where}: {error}") from error
    return dialogues


def read_text(path: Path) -> str:
    """Read a UTF-8 file of scripts.

    Raises:
      DataError: it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except OSError as error:
        raise DataError(f"text file {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not UTF-8 (byte {error.start}): convert it to UTF-8") from error


def is_world(text: str) -> bool:
    """Return whether a text is a question-and-answer world (`world.parse_world`), not a script of dialogues."""
    lines = (line.strip() for line in text.splitlines())
    first = next((line for line in lines if line and not line.startswith("#")), "==")
    return not first.startswith("==")


def load(path: str | Path, seed: int = 0, copies: int = 1) -> list[Dialogue]:
    """Read the dialogues of a file, or of every `*.txt` in a folder, in name order.

    Args:
      path: file or folder.
      seed: draws the users' voices where none is written.
      copies: above 1, every dialogue is repeated with other random user voices and levels; ids then end in -1, -2, ...

    Raises:
      DataError: no dialogue, or a line that is none.
    """
    path = Path(path)
    files = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not files:
        raise DataError(f"no *.txt in {path}: give a file of dialogues or a folder of them")
    dialogues: list[Dialogue] = []
    for copy in range(copies):
        for file in files:
            for dialogue in parse(read_text(file), str(file), seed=seed * 1000 + copy):
                if copies > 1:
                    rng = random.Random(f"{seed} {copy} {dialogue.id} level")
                    dialogue = replace(
                        dialogue, id=f"{dialogue.id}-{copy + 1}", gain_db=round(rng.uniform(-6, 3), 2),
                        snr_db=round(rng.uniform(20, 40), 1),
                    )  # fmt: skip
                dialogues.append(dialogue)
    if not dialogues:
        raise DataError(f"{path} holds no dialogue: begin one with a line '== id'")
    return dialogues

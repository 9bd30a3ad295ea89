"""The text format of scripts in `data/<set>/*.txt`, and its parser.

A file holds dialogues:

    # a comment
    == rain-1                       a new dialogue, with its id
    voice user: en-us+f3 rate=160 pitch=60      of espeak-ng
    voice model: hibari pitch=1 speed=1.1       of hibari; also range=, formants=
    voice model: endpoint url=http://localhost:8000/v1 model=kokoro voice=af_heart      also speed=, key=VARIABLE
    voice model: cosyvoice folder=CosyVoice2-0.5B prompt=me.wav prompt_text="it is me"  or speaker=; also speed=
    voice model: artifact folder=speech prompt=me.wav       our own model; also conditions=NAME=VALUE
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
import shlex
from collections.abc import Callable, Sequence
from dataclasses import MISSING, fields, replace
from pathlib import Path
from typing import Any

from moshijax import files
from moshijax.data.instructions import Exchange
from moshijax.data.synthesis.dialogue import Dialogue, Utterance
from moshijax.data.synthesis.voices import (
    CASTS,
    ArtifactVoice,
    Cast,
    CosyVoice,
    EndpointVoice,
    EspeakVoice,
    HibariVoice,
    Voice,
)  # fmt: skip
from moshijax.errors import DataError

_UTTERANCE = re.compile(r"^(model|user)\s*(?:([@!+-])\s*([0-9.]+))?\s*:\s*(.+)$")
_VOICE = re.compile(r"^voice\s+(model|user)\s*:\s*(.*)$")
_NUMBER = re.compile(r"^(lead|tail|duration|gain|snr)\s+(-?[0-9.]+)$")
_FIELDS = {"gain": "gain_db", "snr": "snr_db"}
_FACTORS = dict.fromkeys(("pitch", "range", "formants", "speed"), float)
_VOICES: dict[str, tuple[type, dict[str, Callable[[str], Any]]]] = {
    "hibari": (HibariVoice, _FACTORS),
    "endpoint": (EndpointVoice, {"url": str, "model": str, "voice": str, "speed": float, "key": str}),
    "cosyvoice": (CosyVoice, {"folder": str, "speaker": str, "prompt": str, "prompt_text": str, "speed": float}),
    "artifact": (ArtifactVoice, {"folder": str, "prompt": str, "conditions": lambda text: tuple(text.split(";"))}),
}
_WHAT = {int: "a whole number", str: "a text"}


def parse_voice(text: str) -> Voice:
    """Read `language[+variant] [rate=N] [pitch=N] [range=N]`, or another synthesiser's name and settings, as above.

    Values with spaces stand in quotes.

    Raises:
      DataError: another setting, a value out of range, or a setting that is missing.
    """
    try:
        name, *settings = shlex.split(text)
    except ValueError as error:
        raise DataError(f"voice {text!r} cannot be read ({error}): close every quote") from None
    if name in _VOICES:
        kind, readers = _VOICES[name]
        try:
            return kind(**_settings(settings, readers))
        except TypeError:
            needed = ", ".join(f"{f.name}=" for f in fields(kind) if f.default is MISSING)
            raise DataError(f"voice {text!r} lacks a setting: {name} needs {needed}") from None
    language, _, variant = name.partition("+")
    return EspeakVoice(language, variant, **_settings(settings, {"rate": int, "pitch": int, "range": int}))


def _settings(settings: list[str], readers: dict[str, Callable[[str], Any]]) -> dict[str, Any]:
    values = {}
    for setting in settings:
        key, _, value = setting.partition("=")
        try:
            if key not in readers or not value:
                raise ValueError
            values[key] = readers[key](value)
        except ValueError:
            *names, last = readers
            what = _WHAT.get(readers.get(key), "a number")
            raise DataError(f"voice setting {setting!r}: write {'=, '.join(names)}= or {last}= and {what}") from None
    return values


def _utterance(match: re.Match[str]) -> Utterance:
    speaker, mark, number, text = match.groups()
    if mark is None:
        return Utterance(speaker, text)
    value = float(number)
    if mark in "+-":
        return Utterance(speaker, text, gap=value if mark == "+" else -value)
    return Utterance(speaker, text, kind="backchannel" if mark == "@" else "interruption", at=value)


def parse(text: str, where: str = "text", seed: int = 0, cast: Cast = CASTS["espeak-ng"]) -> list[Dialogue]:
    """Parse the dialogues of a script.

    Args:
      text: the script.
      where: its name in messages.
      seed: draws the users' voices where none is written.
      cast: voices where none are written.

    Raises:
      DataError: a line that is none of the forms above, with its number.
    """
    dialogues: list[Dialogue] = []
    block: dict | None = None

    def finish() -> None:
        if block is not None:
            known = {key: value for key, value in block.items() if value is not None}
            known.setdefault("user_voice", cast.user(random.Random(f"{seed} {known['id']}")))
            dialogues.append(Dialogue(**{**known, "utterances": tuple(known["utterances"])}))

    for number, raw in enumerate(files.lines(text), 1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        try:
            if line.startswith("=="):
                finish()
                block = {"id": line[2:].strip(), "utterances": [], "model_voice": cast.model}
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


def is_world(text: str) -> bool:
    """Return whether a text is a question-and-answer world (`world.parse_world`), not a script of dialogues."""
    lines = (line.strip() for line in files.lines(text))
    first = next((line for line in lines if line and not line.startswith("#")), "==")
    return not first.startswith("==")


def load(path: str | Path, seed: int = 0, copies: int = 1, cast: Cast = CASTS["espeak-ng"]) -> list[Dialogue]:
    """Read the dialogues of a file, or of every `*.txt` in a folder, in name order.

    Args:
      path: file or folder.
      seed: draws the users' voices where none is written.
      copies: above 1, every dialogue is repeated with other random user voices and levels; ids then end in -1, -2, ...
      cast: voices where none are written.

    Raises:
      DataError: no dialogue, or a line that is none.
    """
    path = Path(path)
    scripts = sorted(path.glob("*.txt")) if path.is_dir() else [path]
    if not scripts:
        raise DataError(f"no *.txt in {path}: give a file of dialogues or a folder of them")
    dialogues: list[Dialogue] = []
    for copy in range(copies):
        for file in scripts:
            found = parse(files.read_text(file), str(file), seed * 1000 + copy, cast)
            dialogues += [_copy(dialogue, seed, copy) for dialogue in found] if copies > 1 else found
    if not dialogues:
        raise DataError(f"{path} holds no dialogue: begin one with a line '== id'")
    return dialogues


def _copy(dialogue: Dialogue, seed: int, copy: int) -> Dialogue:
    rng = random.Random(f"{seed} {copy} {dialogue.id} level")
    return replace(
        dialogue, id=f"{dialogue.id}-{copy + 1}", gain_db=round(rng.uniform(-6, 3), 2),
        snr_db=round(rng.uniform(20, 40), 1),
    )  # fmt: skip


def of_exchanges(
    exchanges: Sequence[Exchange], seed: int = 0, copies: int = 1, cast: Cast = CASTS["espeak-ng"]
) -> list[Dialogue]:
    """Return questions and answers as dialogues; arguments as of `load`."""
    dialogues = []
    for copy in range(copies):
        for exchange in exchanges:
            turns = Utterance("user", exchange.question), Utterance("model", exchange.answer)
            voice = cast.user(random.Random(f"{seed * 1000 + copy} {exchange.id}"))
            dialogue = Dialogue(exchange.id, turns, cast.model, voice)
            dialogues.append(_copy(dialogue, seed, copy) if copies > 1 else dialogue)
    return dialogues


def load_cast(path: Path) -> Cast:
    """Read who speaks in the calls of a set: a line `model: VOICE`, and lines `user: VOICE`, one drawn for each call.

    A voice is written as after `voice user:`; `random espeak-ng` and `random hibari` are drawn again for every call.

    Raises:
      DataError: another line, no voice of the model or several, or none of the user.
    """
    voices: dict[str, list[Callable[[random.Random], Voice]]] = {"model": [], "user": []}
    models: list[Voice] = []
    for number, raw in enumerate(files.lines(files.read_text(path, "cast")), 1):
        who, _, text = (part.strip() for part in raw.partition(":"))
        if not who or who.startswith("#"):
            continue
        try:
            if who not in voices or not text:
                raise DataError(f"{raw[:60]!r} is no voice: write 'model: VOICE' or 'user: VOICE'")
            first, _, name = text.partition(" ")
            if first == "random":
                if name not in CASTS or who == "model":
                    raise DataError(f"{raw!r}: only voices of users are drawn, of {' or '.join(CASTS)}")
                voices[who].append(CASTS[name].user)
                continue
            voice = parse_voice(text)
            voices[who].append(lambda _, voice=voice: voice)
            models += [voice] if who == "model" else []
        except DataError as error:
            raise DataError(f"{path}, line {number}: {error}") from error
    if len(models) != 1 or not voices["user"]:
        raise DataError(f"{path} has {len(models)} voices of the model and {len(voices['user'])} of users: 1 and more")
    return Cast(models[0], lambda rng: rng.choice(voices["user"])(rng))

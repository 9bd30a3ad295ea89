"""Texts to speak, as words with their pieces."""

from __future__ import annotations

import re

from moshijax.errors import ConfigError
from moshijax.runtime.rows import Program, Word

PAUSE = re.compile(r'<break\s+time="(\d+(?:\.\d+)?)s"\s*/?>')
#: What the models of speech synthesis have not seen in texts.
CHANGED = str.maketrans({"\u2019": "'", ":": " ", "(": None, ")": None})


def words(program: Program, text: str, padding_between: int = 1) -> list[Word]:
    """The words of a text for a synthesis artifact.

    Every line is a turn, of the main speaker and the other by turns; where the model knows speakers, the first word of
    a turn begins with a token for its speaker. `<break time="0.5s"/>` is a pause. padding_between: frames without
    another word after each word, beside those its pieces take (`models/tts.py` of `moshi`).

    Raises: ConfigError if there is nothing to say or no tokenizer in the artifact.
    """
    frame = program.frame_size / program.sample_rate
    special = program.manifest["text"]["special"]
    speakers = (special["bos"], special["eos"]) if program.policy.get("turn_tokens") else ()
    out: list[Word] = []
    speaking = None
    for turn, line in enumerate(text.splitlines()):
        parts = PAUSE.split(line)  # words, seconds, words, seconds, .., words
        for index, part in enumerate(parts):
            if index % 2:
                out.append(Word("", (), round(float(part) / frame)))
                continue
            for word in part.translate(CHANGED).split():
                pieces = program.tokenize(word)
                if speakers and speaking != turn % 2:
                    speaking = turn % 2
                    pieces = [speakers[speaking], *pieces]
                padding = padding_between + len(pieces) - 1 if padding_between else 0
                out.append(Word(word, tuple(pieces), padding))
    if not any(word.pieces for word in out):
        raise ConfigError("the text to speak holds no word; give at least one")
    return out

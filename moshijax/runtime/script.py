"""Texts to speak, as words with their pieces."""

from __future__ import annotations

import re

from moshijax import files
from moshijax.errors import ConfigError
from moshijax.runtime.artifact import Artifact
from moshijax.runtime.hosting import ScriptWord

PAUSE = re.compile(r'<break\s+time="(\d+(?:\.\d+)?)s"\s*/?>')
#: What the models of speech synthesis have not seen in texts.
CHANGED = str.maketrans({"\u2019": "'", ":": " ", "(": None, ")": None})


def words(artifact: Artifact, text: str, padding_between: int = 1) -> list[ScriptWord]:
    """Return the words of a text for a synthesis artifact.

    Every line is a turn, of the main speaker and the other alternately; where the model knows speakers, the first word
    of a turn begins with a token for its speaker. `<break time="0.5s"/>` is a pause.

    Args:
      artifact: what speaks them; its tokenizer makes the pieces.
      text: the text, one line or more.
      padding_between: frames without another word after each word, beside those its pieces take (`models/tts.py` of
        `moshi`).

    Raises:
      ConfigError: there is nothing to say, or no tokenizer in the artifact.
    """
    special = artifact.manifest["text"]["special"]
    speakers = (special["bos"], special["eos"]) if artifact.policy.get("turn_tokens") else ()
    out: list[ScriptWord] = []
    speaking = None
    for turn, line in enumerate(files.lines(text)):
        parts = PAUSE.split(line)  # words, seconds, words, seconds, .., words
        for index, part in enumerate(parts):
            if index % 2:
                out.append(ScriptWord("", (), round(float(part) / artifact.frame_seconds)))
                continue
            for word in part.translate(CHANGED).split():
                pieces = artifact.tokenize(word)
                if speakers and speaking != turn % 2:
                    speaking = turn % 2
                    pieces = [speakers[speaking], *pieces]
                padding = padding_between + len(pieces) - 1 if padding_between else 0
                out.append(ScriptWord(word, tuple(pieces), padding))
    if not any(word.pieces for word in out):
        raise ConfigError("the text to speak holds no word; give at least one")
    return out

"""A text model of Transformers (Llama, Qwen2) as a language model over the text row of the grid.

Ids 0 to 3 are those of `moshijax.tokens`, and id i of the text model is `SPECIAL + i`. Its beginning and end of a text
stand in the rows of BOS and EOS once more, the initial token is its beginning of a text, and the two kinds of padding,
which it does not know, have zeros (our choice). So its logits are those of its own rows, on the same ids.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from moshijax.annotations import Count, shown
from moshijax.errors import ConfigError
from moshijax.lm import layouts
from moshijax.lm.config import LMConfig
from moshijax.tokens import BOS, EOS
from moshijax.weights.formats.fields import checked
from moshijax.weights.formats.llama import stack_groups, text_config
from moshijax.weights.names import Group, renamed

#: Ids of the grid in front of those of the text model.
SPECIAL = 4


def lm_config(fields: Mapping[str, Any]) -> LMConfig:
    """Return the language model that a config.json of a text model describes; it has no audio rows.

    Raises:
      ConfigError: as `llama.text_config`, or it names no beginning or end of a text.
    """
    text = text_config(fields)
    _ends(fields, text.vocab)
    return LMConfig(layouts.text_only(), card=1, text_card=SPECIAL + text.vocab, temporal=text.stack)


def lm_groups(fields: Mapping[str, Any]) -> list[Group]:
    """Return the names of the text model that a config.json describes, and the paths of a language model.

    Raises:
      ConfigError: as `lm_config`.
    """
    text = text_config(fields)
    vocab, dim = text.vocab, text.stack.dim
    begin, end = _ends(fields, vocab)

    def rows(a: np.ndarray) -> np.ndarray:
        special = np.zeros((SPECIAL, dim), a.dtype)
        special[BOS], special[EOS] = a[begin], a[end]
        return np.concatenate([special, a])

    def table(a: np.ndarray) -> np.ndarray:
        return np.concatenate([rows(a), a[begin][None]])[None]

    embedding = {"text_embedding/table": (1, SPECIAL + vocab + 1, dim)}
    head = {"text_head/kernel": (SPECIAL + vocab, dim)}
    theirs = {"model.embed_tokens.weight": (vocab, dim)}
    if text.tied:
        groups = [Group(theirs, {**embedding, **head}, lambda a: [table(a[0]), rows(a[0])])]
    else:
        groups = [
            Group(theirs, embedding, lambda a: [table(a[0])]),
            Group({"lm_head.weight": (vocab, dim)}, head, lambda a: [rows(a[0])]),
        ]
    groups += stack_groups("model.layers", "temporal", text.stack)
    return [*groups, renamed("model.norm.weight", "out_norm/scale", (dim,))]


def _ends(fields: Mapping[str, Any], vocab: int) -> tuple[int, int]:
    """Ids of the beginning and of the end of a text: where several end one, the first."""
    hints = dict.fromkeys(("bos_token_id", "eos_token_id"), Count | tuple[Count, ...] | None)
    found = []
    for name in hints:
        value = checked({name: fields.get(name)}, hints, "config.json")[name]
        first = value[0] if isinstance(value, tuple) and value else value
        if not isinstance(first, int) or first >= vocab:
            raise ConfigError(
                f"config.json has {name}={shown(value)}: must be an id below vocab_size={vocab}; add the one that "
                "begins or ends a text"
            )
        found.append(first)
    return found[0], found[1]

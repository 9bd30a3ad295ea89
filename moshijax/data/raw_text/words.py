"""Words of any script, for n-grams and rules: what datatrove's steps count."""

from __future__ import annotations

from functools import cache
from typing import Any

from moshijax import optional

# Scripts that leave no space between words; of them every letter is one.
_PATTERN = r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}\p{Tibetan}]|[^\s\p{P}]+|\p{P}"


@cache
def tokenizer() -> Any:
    """Return a `WordTokenizer` of datatrove that needs no model; those it would choose need one for every language."""
    base = optional.load("datatrove.utils.word_tokenizers").WhitespaceTokenizer
    pattern = optional.load("regex").compile(_PATTERN)

    class Words(base):
        def word_tokenize(self, text: str) -> list[str]:
            return pattern.findall(text)

    return Words()


def plain_words(text: str) -> list[str]:
    """Return the words of a text in lower case, without punctuation and accents, numbers as 0."""
    return tokenizer().word_tokenize(optional.load("datatrove.utils.text").simplify_text(text))

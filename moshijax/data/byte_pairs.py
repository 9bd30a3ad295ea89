"""Text tokens of a Llama 3 or a Qwen2: byte pairs by `tokenizer.json`, as ids of the grid.

Ids 0 to 3 are those of `moshijax.tokens`, and id i of the file is `SPECIAL + i`, as the rows of such a backbone are
(`moshijax.weights.formats.backbone`). Pieces are spelled as SentencePiece spells them: a space is "▁", and bytes that
are no whole characters are "<0xE2><0x80>".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from moshijax import optional
from moshijax.errors import DataError
from moshijax.weights.formats.backbone import SPECIAL

#: Pieces of the special ids, as SentencePiece names them.
_SPECIAL_PIECES = ("<unk>", "<s>", "</s>", "<pad>")


class BytePairs:
    """The processor of a `tokenizer.json` (`tokenizers` of Hugging Face), of byte pairs of GPT-2's kind.

    Args:
      model: the bytes of the file.
      name: of the file in messages.

    Attributes:
      file_name: by which a folder holds it.
      pieces: the string of every id of the grid.

    Raises:
      DataError: it is no such file, or lacks bytes, so that texts would lose them.
      MissingPackage: `tokenizers` is not installed.
    """

    file_name = "tokenizer.json"

    def __init__(self, model: bytes, name: str):
        tokenizers = optional.load("tokenizers")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(model.decode("utf-8"))
        except Exception as error:  # the library raises bare exceptions
            raise DataError(f"{name} is no tokenizer.json ({error}): copy it again") from None
        described = json.loads(model)
        if described["model"].get("type") != "BPE" or not _mentions(described, "ByteLevel"):
            raise DataError(
                f"{name} is not of byte pairs, as those of Llama 3 and Qwen2 are: give one of them, or the "
                "tokenizer.model of a run"
            )
        ids = self._tokenizer.get_vocab(with_added_tokens=True)
        if lacking := [byte for byte, letter in _LETTERS.items() if letter not in ids]:
            raise DataError(f"{name} has no piece for byte {lacking[0]} and {len(lacking) - 1} more: copy it again")
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()
        self._tokenizer.encode_special_tokens = True  # what looks like a special token in a text is text
        added = {token["id"] for token in described.get("added_tokens", ())}
        self._bytes = [b""] * (SPECIAL + max(ids.values()) + 1)
        pieces = [*_SPECIAL_PIECES, *[""] * (len(self._bytes) - SPECIAL)]
        for piece, number in ids.items():
            self._bytes[SPECIAL + number] = piece.encode() if number in added else piece_bytes(piece)
            pieces[SPECIAL + number] = piece if number in added else _spelled(self._bytes[SPECIAL + number])
        self.pieces = tuple(pieces)

    def encode(self, texts: Sequence[str]) -> list[list[int]]:
        """Return the ids of texts, each as it stands behind a space, which begins a word."""
        spaced = [" " + text if text and not text[0].isspace() else text for text in texts]
        found = self._tokenizer.encode_batch(spaced, add_special_tokens=False)
        return [[SPECIAL + number for number in encoding.ids] for encoding in found]

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, without the space in front of it."""
        return b"".join(self._bytes[number] for number in ids).decode("utf-8", "replace").removeprefix(" ")


def _byte_letters() -> dict[int, str]:
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in plain]
    return {byte: chr(byte) for byte in plain} | {byte: chr(256 + i) for i, byte in enumerate(others)}


_LETTERS = _byte_letters()
_BYTES = {letter: byte for byte, letter in _LETTERS.items()}


def piece_bytes(piece: str) -> bytes:
    """Return the bytes of a piece in which each has a letter of its own, as GPT-2 has them."""
    return bytes(_BYTES[letter] for letter in piece)


def _spelled(piece: bytes) -> str:
    try:
        return piece.decode("utf-8").replace(" ", "\u2581")
    except UnicodeDecodeError:
        mark = "\u2581" if piece.startswith(b" ") else ""
        return mark + "".join(f"<0x{byte:02X}>" for byte in piece.removeprefix(b" "))


def _mentions(described: dict[str, Any], kind: str) -> bool:
    parts = [described.get(part) or {} for part in ("pre_tokenizer", "decoder")]
    parts += [each for part in parts for each in part.get("pretokenizers", part.get("decoders", ()))]
    return any(part.get("type") == kind for part in parts)

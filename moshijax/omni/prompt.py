"""The prompt of LLaMA-Omni: what stands before and behind the speech of a question (`llava`'s template for Llama 3).

It is not the chat template of Llama 3.1: there is no date, and two ids of the beginning of a text stand in front.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np

from moshijax import optional
from moshijax.errors import ConfigError, DataError
from moshijax.omni import text_model
from moshijax.omni.spectrogram import CLIP, HOP, SAMPLE_RATE
from moshijax.omni.text_model import TextConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Float

SYSTEM = (
    "You are a helpful language and speech assistant. You are able to understand the speech content that the user "
    "provides, and assist the user with a variety of tasks using natural language."
)
#: Behind the speech, in the same turn.
QUESTION = "\nPlease directly answer the questions in the user's speech."
#: File of a tokenizer.
TOKENIZER = "tokenizer.json"
#: The id that stands for speech in a sequence of published ids.
SPEECH = -200
BEGIN, HEADER, HEADER_END, TURN_END = "<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"
#: Special tokens that the tokenizer of a text model must have, by the model's kind.
SPECIAL_TOKENS = {"llama3": (BEGIN, HEADER, HEADER_END, TURN_END), "qwen2": ("<|im_start|>", "<|im_end|>")}


@dataclass(frozen=True)
class Prompt:
    """Ids around the speech of a question.

    Attributes:
      before: Ids in front of the speech.
      after: Ids between the speech and the answer.
    """

    before: tuple[int, ...]
    after: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole prompt, with `SPEECH` where the speech stands."""
        return (*self.before, SPEECH, *self.after)


def _turn(role: str, text: str) -> str:
    return f"{HEADER}{role}{HEADER_END}\n\n{text}"


def texts(system: str = SYSTEM, question: str = QUESTION) -> tuple[str, str]:
    """Return the text before and behind the speech.

    Args:
      system: What the model is told about itself.
      question: What follows the speech; it begins with a new line in the published prompt.
    """
    before = BEGIN + _turn("system", system) + TURN_END + _turn("user", "")
    return before, question + TURN_END + _turn("assistant", "")


def tokenizer_file(path: str | Path) -> Path:
    """Return the file of a tokenizer: the path itself, or `tokenizer.json` in a folder."""
    return Path(path) / TOKENIZER if Path(path).is_dir() else Path(path)


def load_tokenizer(path: str | Path, vocab: int, kind: str = "llama3") -> Any:
    """Read the `tokenizer.json` of a text model (`tokenizers` of Hugging Face).

    Args:
      path: The file, or the directory that holds it.
      vocab: V, ids of the text model.
      kind: Of the text model, a name in `SPECIAL_TOKENS`.

    Returns:
      A `tokenizers.Tokenizer`.

    Raises:
      DataError: The file is missing or not a tokenizer, has other special tokens, or ids that the model does not have.
      MissingPackage: `tokenizers` is not installed.
    """
    tokenizers = optional.load("tokenizers")
    file = tokenizer_file(path)
    if not file.is_file():
        raise DataError(f"{file} is not there; name the {TOKENIZER} of the text model")
    try:
        tokenizer = tokenizers.Tokenizer.from_file(str(file))
    except Exception as error:  # the library raises bare exceptions
        raise DataError(f"{file} is no tokenizer ({error}); fetch it again") from None
    missing = [token for token in SPECIAL_TOKENS[kind] if tokenizer.token_to_id(token) is None]
    if missing:
        raise DataError(f"{file} lacks {', '.join(missing)}: it is of no {kind}; use the tokenizer of the text model")
    largest = max(tokenizer.get_vocab(with_added_tokens=True).values())
    if largest >= vocab:
        raise DataError(
            f"{file} has ids up to {largest}, the text model has {vocab}; use the tokenizer of the text model"
        )
    return tokenizer


def make_prompt(tokenizer: Any, system: str = SYSTEM, question: str = QUESTION) -> Prompt:
    """Return the ids of a prompt; each text is tokenised by itself.

    The text begins with `BEGIN` already, and the published code puts another one in front of it.

    Args:
      tokenizer: As `load_tokenizer` returns it.
      system: As in `texts`.
      question: As in `texts`.
    """
    before, after = (tuple(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts(system, question))
    return Prompt((tokenizer.token_to_id(BEGIN), *before), after)


def speech_rows(samples: int, stacked: int = 5) -> int:
    """Return how many embeddings cover a recording of this length, without the silence that pads it.

    The published model always sees all of a clip of 30 s, which are 300; this is for models of our own.

    Args:
      samples: Of the recording, at 16 kHz.
      stacked: Features of the encoder that become one embedding.

    Raises:
      DataError: A recording longer than a clip, or too short for one embedding.
    """
    frames = -(-samples // HOP)
    rows = (frames + 1) // 2 // stacked
    if samples > CLIP or rows < 1:
        raise DataError(
            f"a recording of {samples / SAMPLE_RATE:.2f} s: must be {2 * stacked * HOP / SAMPLE_RATE:g} to "
            f"{CLIP / SAMPLE_RATE:g} s long; cut it, or leave it out"
        )
    return rows


def splice(
    config: TextConfig, params: dict[str, Any], prompt: Prompt, speech_BRD: Float[Array, "B R D"]
) -> Float[Array, "B T D"]:
    """Return the embeddings of a prompt with the speech in its place, in the compute dtype of the text model.

    Args:
      config: Of the text model.
      params: Of the text model.
      prompt: The same for all rows.
      speech_BRD: As the adapter returns it: all 300 rows of a clip, or the first ones (`speech_rows`).

    Raises:
      ConfigError: Speech of another width than the model's, or ids that it does not have.
    """
    if speech_BRD.shape[2] != config.stack.dim:
        raise ConfigError(
            f"speech of shape {tuple(speech_BRD.shape)}: must be {config.stack.dim} wide, as the text model; use the "
            "adapter that was trained for it"
        )
    ids = np.asarray((*prompt.before, *prompt.after))
    if ids.min() < 0 or ids.max() >= config.vocab:
        raise ConfigError(
            f"prompt with ids from {ids.min()} to {ids.max()}: must be 0 to {config.vocab - 1}; use the tokenizer of "
            "the text model"
        )

    def part(ids: tuple[int, ...]) -> Array:
        x = text_model.embed(config, params, jnp.asarray([ids], jnp.int32))
        return jnp.broadcast_to(x, (speech_BRD.shape[0], *x.shape[1:]))

    before, after = part(prompt.before), part(prompt.after)
    return jnp.concatenate([before, speech_BRD.astype(before.dtype), after], axis=1)

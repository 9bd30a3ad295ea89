"""Language models that write: behind an HTTP end-point of the OpenAI style, or a local model of Transformers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from moshijax import optional
from moshijax.data.endpoint import Endpoint
from moshijax.errors import ConfigError, MoshijaxError, require


class Writing(NamedTuple):
    """What a generator wrote.

    Attributes:
      text: of the answer.
      complete: it ended by itself, not because there was no more room.
    """

    text: str
    complete: bool


class Generator(Protocol):
    """What writes texts.

    Attributes:
      settings: all that decides them, JSON values.
    """

    settings: dict[str, Any]

    def write(self, system: str, prompt: str, seed: int) -> Writing:
        """Answer a prompt.

        Args:
          system: the instruction to all prompts.
          prompt: of the user.
          seed: of the draws, where the generator takes one.

        Raises:
          DataError: it does not answer this prompt.
          MoshijaxError: it fails.
        """
        ...


@dataclass(frozen=True)
class ChatEndpoint:
    """`POST URL/chat/completions`, as OpenAI's API, vLLM, llama.cpp and others have it; see `Generator`.

    Attributes:
      endpoint: where it is.
      model: that the server is asked for.
      temperature: of the draws.
      max_tokens: of an answer.
    """

    endpoint: Endpoint
    model: str
    temperature: float = 0.8
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        _check(self.temperature, self.max_tokens)
        require(bool(self.model), "an end-point is asked for a model by its name: add --model NAME")

    @property
    def settings(self) -> dict[str, Any]:
        """Return all that decides an answer; the server's own seed may or may not."""
        return {
            "url": self.endpoint.url, "model": self.model, "temperature": self.temperature,
            "max_tokens": self.max_tokens,
        }  # fmt: skip

    def write(self, system: str, prompt: str, seed: int) -> Writing:
        """Answer a prompt; see `Generator`."""
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        body = {
            "model": self.model, "messages": messages, "temperature": self.temperature, "max_tokens": self.max_tokens,
            "seed": seed,
        }  # fmt: skip
        content = self.endpoint.post("chat/completions", body)
        try:
            (choice, *_) = json.loads(content)["choices"]
            text = choice["message"]["content"]
            if not isinstance(text, str):
                raise TypeError
            return Writing(text, choice.get("finish_reason") != "length")
        except (ValueError, KeyError, TypeError):
            raise MoshijaxError(
                f"{self.endpoint.url} answered {content[:80]!r}, not with choices that hold a message: it must be an "
                "end-point for chats"
            ) from None


@dataclass(frozen=True)
class LocalModel:
    """A causal language model with a chat template, run by Transformers; see `Generator`. Nothing is downloaded.

    Attributes:
      folder: of the model, or the name of one in the local cache of Hugging Face.
      device: of PyTorch, such as "cpu" or "cuda".
      temperature: of the draws.
      max_tokens: of an answer.
    """

    folder: str
    device: str = "cpu"
    temperature: float = 0.8
    max_tokens: int = 1024

    def __post_init__(self) -> None:
        _check(self.temperature, self.max_tokens)

    @property
    def settings(self) -> dict[str, Any]:
        """Return all that decides an answer."""
        return {"model": Path(self.folder).name, "temperature": self.temperature, "max_tokens": self.max_tokens}

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        transformers = optional.load("transformers")
        try:
            tokenizer = transformers.AutoTokenizer.from_pretrained(self.folder, local_files_only=True)
            model = transformers.AutoModelForCausalLM.from_pretrained(self.folder, local_files_only=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().split("\n")[0]
            raise ConfigError(f"{self.folder} is no language model of Transformers here ({reason}): fetch it") from None
        if not tokenizer.chat_template:
            raise ConfigError(
                f"{self.folder} has no chat template: choose a model that was trained to follow instructions"
            )
        return tokenizer, model.to(self.device).eval()

    def write(self, system: str, prompt: str, seed: int) -> Writing:
        """Answer a prompt; see `Generator`."""
        torch, (tokenizer, model) = optional.load("torch"), self._loaded
        messages = [{"role": "system", "content": system}, {"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(self.device)
        drawn = {"do_sample": True, "temperature": self.temperature} if self.temperature else {"do_sample": False}
        torch.manual_seed(seed)
        with torch.inference_mode():
            tokens = model.generate(**inputs, max_new_tokens=self.max_tokens, **drawn)[0]
        answer = tokens[inputs["input_ids"].shape[1] :]
        return Writing(tokenizer.decode(answer, skip_special_tokens=True), len(answer) < self.max_tokens)


def _check(temperature: float, max_tokens: int) -> None:
    require(0 <= temperature <= 2, f"temperature is {temperature}: use 0 to 2")
    require(max_tokens >= 1, f"max_tokens is {max_tokens}: use at least 1")

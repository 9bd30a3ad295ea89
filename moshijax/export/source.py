"""What an artifact is built from: a run or published weights of a language model, its codec and its text pieces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moshijax import weights
from moshijax.data.encoder import CodecEncoder
from moshijax.data.records import INDEX
from moshijax.data.text import Tokenizer
from moshijax.errors import ConfigError, DataError
from moshijax.weights.source import CODEC as IMPORTED_CODEC

if TYPE_CHECKING:
    from moshijax.codec import MimiConfig
    from moshijax.lm import LMConfig


class Source(NamedTuple):
    """The models of an artifact, as `moshijax.export.artifact.build` takes them."""

    codec_model: tuple[MimiConfig, Any]
    lm_model: tuple[LMConfig, Any]
    pieces: tuple[str, ...]


def load(path: str | Path, codec: str | Path | None = None, tokenizer: str | Path | None = None) -> Source:
    """Read a language model and what belongs to it.

    Args:
      path: the run directory of a language model, or published weights (a directory with `config.json`, or a file).
      codec: its codec, as `moshijax.weights.load_mimi` takes it. By default the one that the run's data was encoded
        with, or the one that a published `config.json` names.
      tokenizer: its SentencePiece model; by default the one in the run or the published directory.

    Raises: ConfigError (no codec or tokenizer is recorded), DataError (another codec than that of the data).
    """
    path = Path(path)
    if not path.exists():
        raise ConfigError(f"nothing at {path}; give the run directory of a language model, weights, or an artifact")
    lm_model = weights.load_lm(path)
    recorded = _recorded_codecs(path)
    codec = codec or _codec_path(path, recorded)
    codec_model = weights.load_mimi(codec)
    wrong = [sha256 for sha256, _ in recorded if sha256 != CodecEncoder(*codec_model).sha256]
    if wrong:
        raise DataError(
            f"codec {codec} is not the one that the data of {path} was encoded with (sha256 {wrong[0][:12]}...); give "
            "that one with --codec"
        )
    return Source(codec_model, lm_model, Tokenizer.load(tokenizer or _tokenizer_path(path)).pieces)


def _json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}); write it again") from None


def _recorded_codecs(path: Path) -> list[tuple[str, str | None]]:
    """sha256 and place of the codecs that the data of a run was encoded with, as its prepared data says."""
    data = _json(path / "config.json").get("data") if path.is_dir() else None
    folders = data.get("paths", []) if isinstance(data, dict) else []
    indexes = [_json(Path(folder) / INDEX).get("codec", {}) for folder in folders]
    return [(index["sha256"], index.get("source")) for index in indexes if "sha256" in index]


def codec_of(path: str | Path) -> Path | None:
    """Where the codec of a language model lies, as far as the run or the published directory says and it is there."""
    try:
        return _codec_path(Path(path), _recorded_codecs(Path(path)))
    except ConfigError:
        return None


def _codec_path(path: Path, recorded: list[tuple[str, str | None]]) -> Path:
    for _, source in recorded:
        if source is not None and Path(source).exists():
            return Path(source)
    folder = path if path.is_dir() else path.parent
    if (folder / IMPORTED_CODEC).is_dir():
        return folder / IMPORTED_CODEC
    name = _json(folder / "config.json").get("mimi_name")
    if isinstance(name, str) and (folder / name).is_file():
        return folder
    places = [source for _, source in recorded if source]
    gone = f" (it was at {places[0]})" if places else ""
    raise ConfigError(f"{path} does not lead to its codec{gone}; give it with --codec")


def _tokenizer_path(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    name = _json(folder / "config.json").get("tokenizer_name")
    for candidate in (name if isinstance(name, str) else None, "tokenizer.model"):
        if candidate is not None and (folder / candidate).is_file():
            return folder / candidate
    raise ConfigError(f"{folder} has no tokenizer.model; give the SentencePiece model with --tokenizer")

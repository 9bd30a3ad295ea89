"""What an artifact is built from: a run or published weights of a language model, its codec and its text pieces."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from moshijax import files, weights
from moshijax.config_json import from_json
from moshijax.data.encoder import CodecEncoder
from moshijax.data.records import INDEX
from moshijax.data.text import Tokenizer
from moshijax.errors import ConfigError, DataError
from moshijax.export.artifact import conditioner_table
from moshijax.lm import Guidance, TensorConditioner, policies
from moshijax.runtime.conditions import parse, read_vectors
from moshijax.weights.formats import huggingface_config
from moshijax.weights.formats.lm_config import completed, loader_fields
from moshijax.weights.formats.lm_config import unused_fields as _unused
from moshijax.weights.imported import CODEC as IMPORTED_CODEC
from moshijax.weights.imported import PROVENANCE
from moshijax.weights.published import PREPROCESSOR, tokenizer_in
from moshijax.weights.run import is_run
from moshijax.weights.run_files import CONFIG, read_record

if TYPE_CHECKING:
    from moshijax.codec import MimiConfig
    from moshijax.lm import LMConfig


#: What a model can be used for, by the names of `--policy`.
POLICIES = {
    "conversation": policies.Conversation,
    "recognition": policies.Recognition,
    "synthesis": policies.Synthesis,
    "translation": policies.Translation,
}
#: The use of published models by their `model_type`.
PUBLISHED_USES = {
    **{"moshi": "conversation", "personaplex": "conversation"},
    **{"hibiki": "translation", "stt": "recognition", "tts": "synthesis"},
}

#: What published models want to be conditioned on, and not: (name, value, null value), where they know that value.
PUBLISHED_CONDITIONS = (("description", "very_good", "very_bad"), ("control", "ok", None), ("cfg", "2.0", None))


class ArtifactSource(NamedTuple):
    """The models of an artifact, and how they are used: arguments of `moshijax.export.artifact.build`.

    Attributes:
      codec_model: config and parameters of the codec.
      lm_model: config and parameters of the language model.
      pieces: the string of every text id.
      use: the keyword arguments.
    """

    codec_model: tuple[MimiConfig, Any]
    lm_model: tuple[LMConfig, Any]
    pieces: tuple[str, ...]
    use: dict[str, Any]


def load(
    path: str | Path,
    codec: str | Path | None = None,
    tokenizer: str | Path | None = None,
    *,
    policy: str | None = None,
    conditions: Sequence[str] = (),
    null_conditions: Sequence[str] = (),
    guidance: float | None = None,
) -> ArtifactSource:
    """Read a language model and what belongs to it.

    Args:
      path: the run directory of a language model, or published weights (a directory with `config.json`, or a file).
      codec: its codec, as `moshijax.weights.load_mimi` takes it. By default the one that the run's data was encoded
        with, or the one that a published `config.json` names.
      tokenizer: the file of its tokenizer; by default the one in the run or the published directory.
      policy: one of `POLICIES`; by default what a published config says, else conversation.
      conditions, null_conditions: `NAME=VALUE`, what calls are conditioned on, and the second halves of guided ones.
      guidance: coefficient of classifier-free guidance; None builds the step without.

    Raises:
      ConfigError: no codec or tokenizer is recorded, or an unknown condition.
      DataError: another codec than that of the data.
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
    published = _published(path)
    text = Tokenizer.load(tokenizer or _tokenizer_path(path))
    lm_config = _fixed_lengths(lm_model[0], published, conditions)
    use = {
        "policy": _policy(policy, lm_config, published, float(codec_model[0].frame_rate)),
        "sampling": _sampling(published),
        "tokenizer": text.model if text.takes_words else None,
    }
    if isinstance(use["policy"], policies.Synthesis) and not text.takes_words:
        raise ConfigError(
            f"{path} has a {text.file_name}, and a synthesis is given text by a SentencePiece model alone; omit "
            "--policy synthesis"
        )
    table = conditioner_table(lm_config)
    given, null = parse(table, conditions), parse(table, null_conditions)
    for name, value, null_value in PUBLISHED_CONDITIONS if published.get("model_type") else ():
        if name in table and value in (table[name].get("values") or ()):
            given.setdefault(name, value)
            if null_value is not None and guidance is not None:
                null.setdefault(name, null_value)
    use |= {"conditions": given, "null_conditions": null}
    if guidance is not None:
        # (synthesis: the second half sees no text, and the text is not guided, as the published engine has it)
        use["guidance"] = Guidance(guidance, text=not isinstance(use["policy"], policies.Synthesis))
    return ArtifactSource(codec_model, (lm_config, lm_model[1]), text.pieces, use)


def _published(path: Path) -> dict[str, Any]:
    """Return what a published config says beside the parameters; nothing for a run."""
    folder = path if path.is_dir() else path.parent
    record = _json(folder / PROVENANCE)
    config = completed(_json(folder / "config.json")) or record.get("config", {})
    if huggingface_config.is_config(config):
        preprocessor = _json(folder / PREPROCESSOR) or record.get("preprocessor", {})
        return huggingface_config.loader_fields(config, preprocessor)
    return loader_fields(config)


def unused_fields(path: str | Path) -> list[str]:
    """Return what a published config says about generation that an artifact has no place for."""
    return _unused(_published(Path(path)))


def _policy(name: str | None, config: LMConfig, published: dict[str, Any], frame_rate: float) -> policies.Policy:
    name = name or PUBLISHED_USES[published.get("model_type", "moshi")]
    if name == "recognition" and "stt_config" in published:
        said = published["stt_config"]
        return policies.Recognition(
            said.get("audio_delay_seconds") or 0.0, said.get("audio_silence_prefix_seconds") or 0.0
        )
    if name == "synthesis":
        said = published.get("tts_config", {})
        return policies.Synthesis(
            audio_delay=int((said.get("audio_delay") or 0.0) * frame_rate),
            look_ahead=said.get("second_stream_ahead") or 0,
            turn_tokens=any(c.fuse == "cross" for c in config.conditioners),
        )
    return POLICIES[name]()


def _sampling(published: dict[str, Any]) -> dict[str, float]:
    """Return the sampling defaults of a published model; those of speech synthesis are cooler than the others."""
    names = {
        **{"temp": "temperature", "temp_text": "text_temperature", "text_temp": "text_temperature"},
        **{"top_k": "top_k", "top_k_text": "text_top_k"},
    }
    cooler = {"temp": 0.6, "temp_text": 0.6} if published.get("model_type") == "tts" else {}
    said = {**cooler, **published.get("lm_gen_config", {})}
    sampling = {names[name]: value for name, value in said.items() if name in names and value is not None}
    return sampling | ({"temperature": 0.0, "text_temperature": 0.0} if said.get("use_sampling") is False else {})


def _fixed_lengths(config: LMConfig, published: dict[str, Any], conditions: Sequence[str]) -> LMConfig:
    """Fix the room for voices: they are published one by one, and the model sees several, missing ones absent."""
    speakers = published.get("tts_config", {}).get("max_speakers") or 5
    given = dict(item.partition("=")[::2] for item in conditions)

    def fixed(c: Any) -> Any:
        if published.get("model_type") != "tts" or not isinstance(c, TensorConditioner) or c.name not in given:
            return c
        return replace(c, length=speakers * len(read_vectors(c.name, given[c.name].split(",")[:1])))

    return replace(config, conditioners=tuple(map(fixed, config.conditioners)))


def _json(path: Path) -> dict[str, Any]:
    return from_json(dict[str, Any], files.read_json(path), str(path)) if path.exists() else {}


def _recorded_codecs(path: Path) -> list[tuple[str, str | None]]:
    """Return sha256 and place of the codecs that the data of a run was encoded with, as its prepared data says."""
    if not is_run(path) or not (path / CONFIG).exists():
        return []
    part: Any = read_record(path / CONFIG)
    for name in ("task", "audio", "data", "paths"):  # of a run's `moshijax.train.experiment.ExperimentConfig`
        part = part.get(name) if isinstance(part, dict) else None
    folders = [folder for folder in part if isinstance(folder, str)] if isinstance(part, list) else []
    indexes = [_json(Path(folder) / INDEX).get("codec") for folder in folders]
    return [
        (index["sha256"], index.get("source")) for index in indexes if isinstance(index, dict) and "sha256" in index
    ]


def codec_of(path: str | Path) -> Path | None:
    """Return the codec of a language model, if the run or the published directory names one that exists."""
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
    name = completed(_json(folder / "config.json")).get("mimi_name")
    if isinstance(name, str) and (folder / name).is_file():
        return folder
    places = [source for _, source in recorded if source]
    gone = f" (it was at {places[0]})" if places else ""
    raise ConfigError(f"{path} does not lead to its codec{gone}; give it with --codec")


def _tokenizer_path(path: Path) -> Path:
    folder = path if path.is_dir() else path.parent
    name = completed(_json(folder / "config.json")).get("tokenizer_name")
    if isinstance(name, str) and (folder / name).is_file():
        return folder / name
    if (found := tokenizer_in(folder)) is None:
        raise ConfigError(f"{folder} has no tokenizer.model or tokenizer.json; give the file with --tokenizer")
    return found

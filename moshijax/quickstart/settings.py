"""The settings of a quickstart: sizes, seed, what it exports for, and the folder it lives in."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from moshijax.errors import ConfigError

# What the artifact is exported for: machines, and calls at once.
PLATFORMS = ("cpu", "cuda", "tpu")
BATCHES = (1, 16)


@dataclass(frozen=True)
class Settings:
    """Sizes of a quickstart; the defaults fit 15 minutes on two CPU cores.

    Attributes:
      seed: of voices, levels, order of the data, initial parameters and sampling.
      recordings: of speech without pauses, for the codec.
      answered, unanswered, silent: training calls with a question, with unrelated speech, and with silence.
      heldout: held-out calls per group and kind.
      hearing_recipe, codec_recipe, lm_recipe: gin recipes, shipped ones by name.
      codec_overrides (of both codec recipes), lm_overrides: `path.to.field=VALUE` on top of the recipes.
      workers: processes that speak.
    """

    seed: int = 0
    recordings: int = 640
    answered: int = 3840
    unanswered: int = 3840
    silent: int = 60
    heldout: int = 32
    hearing_recipe: str = "quickstart/hearing.gin"
    codec_recipe: str = "quickstart/codec.gin"
    lm_recipe: str = "quickstart/moshi.gin"
    codec_overrides: tuple[str, ...] = ()
    lm_overrides: tuple[str, ...] = ()
    workers: int = 2

    def __post_init__(self) -> None:
        for name in ("recordings", "answered", "unanswered", "heldout", "workers"):
            if getattr(self, name) < 1:
                raise ConfigError(f"quickstart {name} is {getattr(self, name)}; it must be at least 1")
        if self.seed < 0 or self.silent < 0:
            raise ConfigError(f"quickstart seed {self.seed} and silent {self.silent} must not be negative")


@dataclass(frozen=True)
class Folder:
    """The files of a quickstart run.

    Attributes:
      path: the run directory.
    """

    path: Path

    @property
    def speech(self) -> Path:
        """What the codec is trained on: manifest.jsonl, audio/, teacher/."""
        return self.path / "speech"

    @property
    def training_calls(self) -> Path:
        """What the language model is trained on."""
        return self.path / "training_calls"

    @property
    def heldout(self) -> Path:
        """The calls that no model is trained on."""
        return self.path / "heldout_calls"

    @property
    def tokenizer(self) -> Path:
        """The text pieces."""
        return self.path / "tokenizer.model"

    @property
    def hearing(self) -> Path:
        """The run of the codec's encoder alone."""
        return self.path / "hearing"

    @property
    def texts(self) -> Path:
        """What the model says, prepared for the text-only steps."""
        return self.path / "texts"

    @property
    def codec(self) -> Path:
        """The run of the whole codec."""
        return self.path / "codec"

    @property
    def grids(self) -> Path:
        """The training calls, encoded."""
        return self.path / "grids"

    @property
    def moshi(self) -> Path:
        """The run of the language model."""
        return self.path / "moshi"

    @property
    def artifact(self) -> Path:
        """The exported streaming step."""
        return self.path / "artifact"

    @property
    def untrained_artifact(self) -> Path:
        """The same of the model before its training, as a control."""
        return self.path / "calls" / "untrained_artifact"

    @property
    def calls(self) -> Path:
        """Results of the held-out calls."""
        return self.path / "calls"

    @property
    def reply(self) -> Path:
        """One live call."""
        return self.path / "reply.wav"

    @property
    def report(self) -> Path:
        """The page."""
        return self.path / "report.html"

    @property
    def picture(self) -> Path:
        """One held-out call, as the report shows it."""
        return self.path / "call.png"

    @property
    def figures(self) -> Path:
        """The measured figures, as JSON."""
        return self.path / "figures.json"

    @property
    def stages(self) -> Path:
        """Done-markers."""
        return self.path / "stages"

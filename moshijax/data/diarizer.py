"""Diarizers, which say who speaks when: the interface, and pyannote."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Protocol

from moshijax import optional
from moshijax.data.diarization import Segment
from moshijax.data.records import digest
from moshijax.data.sources import look
from moshijax.errors import ConfigError


class Diarizer(Protocol):
    """What tells speakers apart.

    Attributes:
      version: of the program, as it is recorded with the segments.
      settings: all that decides the segments, JSON values: hashes of weights rather than their places.
    """

    version: str
    settings: dict[str, Any]

    def segments(self, path: Path) -> list[Segment]:
        """Return who speaks when; segments of different speakers may overlap.

        Args:
          path: of a WAV file, one channel of 16 bits at 16 kHz, of any length.
        """
        ...


class Pyannote:
    """A pipeline of pyannote.audio 4; see `Diarizer`.

    Args:
      model: folder with a pipeline (`config.yaml` and its models), or the name of one that is in the local cache of
        Hugging Face already. Nothing is downloaded.
      device: "cpu" or "cuda".
      speakers: their number; None: it is found.

    Raises:
      MissingPackage: pyannote.audio is not installed.
      ConfigError: there is no such pipeline, or the device is not there.
    """

    def __init__(self, model: str, device: str = "cpu", speakers: int | None = None) -> None:
        pyannote, torch = optional.load("pyannote.audio"), optional.load("torch")
        folder = _folder(model)
        try:
            self._pipeline = pyannote.Pipeline.from_pretrained(folder).to(torch.device(device))
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ConfigError(
                f"{model} cannot be used as a pipeline of pyannote on {device} ({type(error).__name__}: {error}): "
                "fetch it again with all of its models, or choose another device"
            ) from None
        self._speakers = speakers
        self.version = f"pyannote.audio {pyannote.__version__}"
        content = [[path.relative_to(folder).as_posix(), (look(path) or [None])[-1]] for path in _files(folder)]
        self.settings = {"kind": "pyannote", "model": digest(content), "speakers": speakers}

    def segments(self, path: Path) -> list[Segment]:
        """See `Diarizer`."""
        found = self._pipeline(str(path), num_speakers=self._speakers)
        turns = getattr(found, "speaker_diarization", found)  # pipelines of the time before 4 return it itself
        return [
            Segment(str(speaker), float(turn.start), float(turn.end))
            for turn, _, speaker in turns.itertracks(yield_label=True)
        ]


def _files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and ".git" not in path.parts)


def _folder(model: str) -> Path:
    folder = Path(model)
    if not folder.is_dir():
        try:
            folder = Path(optional.load("huggingface_hub").snapshot_download(model, local_files_only=True))
        except (OSError, ValueError):
            pass
    if not (folder / "config.yaml").is_file():
        raise ConfigError(
            f"{model} is no folder with config.yaml, and no pipeline in the local cache (nothing is downloaded): "
            "fetch a pipeline of pyannote, such as speaker-diarization-community-1, and name its folder"
        )
    return folder

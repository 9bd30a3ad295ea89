"""Separators, which take two voices apart that speak at once: the interface, and SepFormer, run by SpeechBrain."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moshijax import optional
from moshijax.data.records import digest
from moshijax.data.sources import look
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

_DESCRIPTION = "hyperparams.yaml"


class Separator(Protocol):
    """What takes two voices apart.

    Attributes:
      version: of the program, as it is recorded with what it made.
      settings: all that decides the result, JSON values: hashes of weights rather than their places.
      rate: in Hz, of what it takes and gives.
    """

    version: str
    settings: dict[str, Any]
    rate: int

    def separate(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
        """Return two voices, in any order and of any scale, of some seconds in which up to two people speak."""
        ...


class SepFormer:
    """A SepFormer of SpeechBrain for two speakers, such as `sepformer-whamr16k`; see `Separator`.

    Args:
      model: folder with `hyperparams.yaml` and the weights that it names. Nothing is downloaded.
      device: "cpu" or "cuda".

    Raises:
      MissingPackage: SpeechBrain is not installed.
      ConfigError: there is no such model, it is for another number of speakers, or the device is not there.
    """

    def __init__(self, model: Path, device: str = "cpu") -> None:
        if not (model / _DESCRIPTION).is_file():
            raise ConfigError(
                f"{model} is no folder with {_DESCRIPTION}: fetch a SepFormer of SpeechBrain, and name it"
            )
        separation = optional.load("speechbrain.inference.separation")
        try:
            self._model = separation.SepformerSeparation.from_hparams(
                source=str(model.resolve()), savedir=str(model.resolve()), run_opts={"device": device}
            )
            speakers, self.rate = int(self._model.hparams.num_spks), int(self._model.hparams.sample_rate)
        except (OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise ConfigError(
                f"{model} cannot be used as a SepFormer on {device} ({type(error).__name__}: {error}): fetch it again "
                "with all of its files, or choose another device"
            ) from None
        if speakers != 2:
            raise ConfigError(f"{model} is for {speakers} speakers: use a model for two")
        self.version = f"speechbrain {optional.load('speechbrain').__version__}"
        content = [[path.name, (look(path) or [None])[-1]] for path in sorted(model.iterdir()) if path.is_file()]
        self.settings = {"kind": "sepformer", "model": digest(content)}

    def separate(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, "N 2"]:
        """See `Separator`."""
        torch = optional.load("torch")
        with torch.inference_mode():
            return self._model.separate_batch(torch.from_numpy(samples)[None])[0].float().cpu().numpy()

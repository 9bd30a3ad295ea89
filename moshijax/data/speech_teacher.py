"""Features of a pretrained speech model (WavLM, HuBERT, wav2vec 2.0), run by Transformers when data is prepared.

Training reads the features and needs neither Transformers nor PyTorch. The sound is resampled to 16 kHz and padded so
that feature i is centred on the 20 ms from i / 50 s, as the codec's frames are. Source: arXiv 2410.00037 section 3.3.2.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import optional
from moshijax.data import audio
from moshijax.data.isolation import Isolated
from moshijax.data.manifest import Item
from moshijax.data.teacher import RATE
from moshijax.errors import ConfigError, DataError

if TYPE_CHECKING:
    from jaxtyping import Float

MODEL_RATE = 16_000
HOP = MODEL_RATE // RATE
#: Longer recordings are processed in pieces of `PIECE` features, with `CONTEXT` more on each side that are discarded.
PIECE, CONTEXT = 30 * RATE, 5 * RATE


def pieces(frames: int) -> list[tuple[int, int, int, int]]:
    """Cut a recording of `frames` features into pieces.

    Returns:
      Of each piece, its (first, last) features and the (start, stop) that the model sees for it.
    """
    if frames <= PIECE + 2 * CONTEXT:
        return [(0, frames, 0, frames)]
    starts = range(0, frames, PIECE)
    return [(a, min(a + PIECE, frames), max(0, a - CONTEXT), min(a + PIECE + CONTEXT, frames)) for a in starts]


class SpeechTeacher:
    """Hidden states of one layer of a speech model, per channel; on a GPU where PyTorch finds one.

    Args:
      model: folder or name that `transformers.AutoModel` takes.
      layer: 0 is the input of the first layer, -1 the output of the last.

    Raises:
      MissingPackage: torch or transformers is not installed.
      DataError: the model cannot be read.
      ConfigError: the model does not give 50 features a second of 16 kHz, or has no such layer.
    """

    transcribed = False

    def __init__(self, model: str, layer: int = -1):
        self._source = model, layer
        self._torch, transformers = optional.load("torch"), optional.load("transformers")
        self._device = "cuda" if self._torch.cuda.is_available() else "cpu"
        try:
            self._model = transformers.AutoModel.from_pretrained(model).eval().to(self._device)
        except (OSError, ValueError) as error:
            raise DataError(f"speech model {model} cannot be read: {str(error).splitlines()[0]}") from error
        try:
            self._extractor = transformers.AutoFeatureExtractor.from_pretrained(model)
        except (OSError, ValueError):  # a model without one takes samples as they are
            self._extractor = None
        config = self._model.config
        if not hasattr(config, "conv_kernel"):
            raise ConfigError(f"model {model} is not a WavLM, HuBERT or wav2vec 2.0: its config has no conv_kernel")
        if math.prod(config.conv_stride) != HOP:
            raise ConfigError(f"model {model} has a hop of {math.prod(config.conv_stride)} samples, {HOP} are needed")
        if not -config.num_hidden_layers - 1 <= layer <= config.num_hidden_layers:
            raise ConfigError(f"layer {layer} of {model} must be -1, or 0 to {config.num_hidden_layers}")
        field, jump = 1, 1
        for kernel, stride in zip(config.conv_kernel, config.conv_stride, strict=True):
            field, jump = field + (kernel - 1) * jump, jump * stride
        self._isolated = Isolated()
        self._side = (field - HOP) // 2
        self._layer, self.dim = layer, config.hidden_size
        self.kind = f"{config.model_type} {model} layer {layer}"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as where the model was read from; each process opens it once."""
        return _opened, self._source

    def features(self, item: Item, duration: float, speakers: dict[str, str]) -> Float[np.ndarray, "C T50 F"]:
        """Return the features of every channel of a recording of `duration` seconds; `speakers` does not matter."""
        channels = audio.probe(item.audio).channels
        signal = audio.apart(self._isolated, audio.read, item.audio, item.audio, MODEL_RATE, tuple(range(channels)))
        frames = math.ceil(duration * RATE - 1e-6)
        return np.stack([self.of_signal(signal[:, c], frames) for c in range(channels)])

    def of_signal(self, signal: Float[np.ndarray, " N"], frames: int) -> Float[np.ndarray, "T50 F"]:
        """Return `frames` features of samples at 16 kHz, with silence after their end."""
        signal = np.pad(signal[: frames * HOP], (0, max(0, frames * HOP - len(signal))))
        out = np.zeros((frames, self.dim), np.float32)
        for first, last, start, stop in pieces(frames):
            out[first:last] = self.hidden(signal[start * HOP : stop * HOP])[first - start : last - start]
        return out

    def hidden(self, signal: Float[np.ndarray, " N"]) -> Float[np.ndarray, "T50 F"]:
        """Return the features of one piece, one per `HOP` samples."""
        torch: Any = self._torch
        if self._extractor is not None:  # normalises, where the model was trained so
            signal = self._extractor(signal, sampling_rate=MODEL_RATE).input_values[0]
        padded = np.pad(np.asarray(signal, np.float32), self._side)
        with torch.no_grad():
            sound = torch.from_numpy(padded)[None].to(self._device)
            states = self._model(sound, output_hidden_states=True).hidden_states
        return states[self._layer][0].cpu().numpy()


_opened = cache(SpeechTeacher)

"""Where anybody speaks: silero's voice activity detector, from its package, on onnxruntime and without PyTorch."""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from moshijax import optional
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Float

RATE = 16_000
_FRAME, _CONTEXT = 512, 64  # samples, of which the context comes before each frame
_FRAMES = 512  # that are judged at once
# As in the package, whose defaults these are.
_SPEECH, _SILENCE = 0.5, 0.35  # probabilities at which speech begins and ends
_SHORTEST, _PAUSE, _PAD = 0.25, 0.1, 0.03  # seconds

#: Where packages keep the detector in the form that judges many frames at once: the package of its authors, which needs
#: PyTorch for everything else and is not imported, and faster-whisper, which ships the same.
_PLACES = (
    ("silero_vad", "data/silero_vad_16k_sequence.onnx"),
    ("faster_whisper", "assets/silero_vad_v6.onnx"),
)


class SileroVad:
    """The detector, with state from one block to the next.

    Args:
      path: of its ONNX file; None: that of an installed package.

    Attributes:
      settings: all that decides what it finds, JSON values.

    Raises:
      MissingPackage: no package with the file is installed, or not onnxruntime.
      ConfigError: the file is not the detector.
    """

    def __init__(self, path: Path | None = None) -> None:
        path = path or _installed()
        runtime = optional.load("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        try:
            self._session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime has a class for every reason
            raise ConfigError(f"{path} cannot be used by onnxruntime ({error}): name silero's ONNX file") from None
        names = sorted(each.name for each in self._session.get_inputs())
        if names != ["c", "h", "input"]:
            raise ConfigError(f"{path} takes {', '.join(names)}: name silero's silero_vad_16k_sequence.onnx")
        with open(path, "rb") as file:
            self.settings = {"kind": "silero", "sha256": hashlib.file_digest(file, "sha256").hexdigest()}

    def probabilities(self, blocks: Iterable[Float[np.ndarray, " n"]]) -> Float[np.ndarray, " frames"]:
        """Return the probability of speech in every 32 ms, in bounded memory.

        Args:
          blocks: of one channel at `RATE`, float32, of any lengths; the last frame is filled up with zeros.
        """
        hidden = cell = np.zeros((1, 1, 128), np.float32)
        before, found = np.zeros(_CONTEXT, np.float32), [np.zeros(0, np.float32)]
        for frames in _frames(blocks):
            contexts = np.concatenate([before[None], frames[:-1, -_CONTEXT:]])
            before = frames[-1, -_CONTEXT:]
            inputs = {"input": np.concatenate([contexts, frames], axis=1), "h": hidden, "c": cell}
            values, hidden, cell = self._session.run(["speech_probs", "hn", "cn"], inputs)
            found.append(values.reshape(-1))
        return np.concatenate(found)

    def speech(self, blocks: Iterable[Float[np.ndarray, " n"]]) -> list[tuple[float, float]]:
        """Return the stretches with speech, (start, end) in seconds, in order; see `probabilities`."""
        return stretches(self.probabilities(blocks))


def stretches(probabilities: Float[np.ndarray, " frames"]) -> list[tuple[float, float]]:
    """Return the stretches with speech, by silero's rule.

    Speech begins at a probability of 0.5, and ends where it is below 0.35 for 0.1 s. Stretches under 0.25 s do not
    count, and each is widened by 30 ms at both ends, without meeting another.
    """
    found: list[list[float]] = []
    begin = quiet = None
    for number, value in enumerate(probabilities):
        time = number * _FRAME / RATE
        if value >= _SPEECH:
            quiet = None
            begin = time if begin is None else begin
        elif value < _SILENCE and begin is not None:
            quiet = time if quiet is None else quiet
            if time - quiet >= _PAUSE:
                found.append([begin, quiet])
                begin = quiet = None
    if begin is not None:
        found.append([begin, len(probabilities) * _FRAME / RATE])
    found = [stretch for stretch in found if stretch[1] - stretch[0] > _SHORTEST]
    end = len(probabilities) * _FRAME / RATE
    gaps = [a[1] + min(2 * _PAD, b[0] - a[1]) / 2 for a, b in zip(found, found[1:])]
    starts = [max(0.0, b[0] - min(2 * _PAD, b[0] - a[1]) / 2) for a, b in zip(found, found[1:])]
    if not found:
        return []
    firsts, lasts = [max(0.0, found[0][0] - _PAD), *starts], [*gaps, min(end, found[-1][1] + _PAD)]
    return list(zip(firsts, lasts))


def _frames(blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Yield whole frames, [at most _FRAMES, _FRAME]."""
    held, size = np.zeros(0, np.float32), _FRAMES * _FRAME
    for block in blocks:
        held = np.concatenate([held, block.astype(np.float32, copy=False)])
        while len(held) >= size:
            yield held[:size].reshape(-1, _FRAME)
            held = held[size:]
    if len(held):
        yield np.pad(held, (0, -len(held) % _FRAME)).reshape(-1, _FRAME)


def _installed() -> Path:
    for package, name in _PLACES:
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            path = Path(spec.submodule_search_locations[0]) / name
            if path.is_file():
                return path
    raise optional.missing("silero_vad")

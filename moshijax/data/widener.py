"""Wideners, which add the highs that narrow recordings lack: the interface, and AudioSR in its own environment."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from moshijax import optional
from moshijax.errors import ConfigError, DataError, MoshijaxError

if TYPE_CHECKING:
    from jaxtyping import Float

MODELS = ("speech", "basic")
_DRIVER = Path(__file__).with_name("audiosr_driver.py")
_STEPS, _GUIDANCE, _SEED = 50, 3.5, 42  # of AudioSR's own command


class Widener(Protocol):
    """What adds highs.

    Attributes:
      version: of the program, as it is recorded with what it made.
      settings: all that decides the result, JSON values: hashes of weights rather than their places.
      rate: in Hz, of what it takes and gives.
      piece_seconds: that it hears at once.
    """

    version: str
    settings: dict[str, Any]
    rate: int
    piece_seconds: float

    def widen(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
        """Return a piece of one channel with highs, of any level, and at least as long.

        Raises:
          DataError: it cannot.
          MoshijaxError: it can do nothing any more.
        """
        ...


class AudioSR:
    """AudioSR (arXiv 2309.07314; package `audiosr`), run by the Python of an environment that has it; see `Widener`.

    Its package pins a numpy that JAX does not run with, hence the other environment.

    Args:
      python: program, such as `envs/audiosr/bin/python`.
      model: "speech" or "basic". The weights must be in the local cache of the Hugging Face hub; nothing is downloaded.
      device: "cpu" or "cuda".

    Raises:
      ConfigError: it cannot be started there.
    """

    rate, piece_seconds = 48_000, 10.24

    def __init__(self, python: Path, model: str = "speech", device: str = "cpu") -> None:
        if model not in MODELS:
            raise ConfigError(f"AudioSR has no model {model!r}: choose {' or '.join(MODELS)}")
        settings = (model, device, *map(str, (_STEPS, _GUIDANCE, _SEED)))
        try:
            self._process = subprocess.Popen(
                [str(python), str(_DRIVER), *settings],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env={**os.environ, "HF_HUB_OFFLINE": "1"},
            )
        except OSError as error:
            raise ConfigError(f"{python} cannot be run ({error.strerror}): name the Python of AudioSR") from None
        about = self._answer()
        if "version" not in about:
            self.close()
            why = about.get("error") or f"exit code {about['ended']}"
            raise ConfigError(
                f"AudioSR cannot be started with {python} ({why}): install audiosr there, and run its own "
                f"command once with --model_name {model}, which fetches the weights"
            )
        self.version = about["version"]
        self.settings = {
            "kind": "audiosr", "model": model, "sha256": about["sha256"], "steps": _STEPS, "guidance": _GUIDANCE,
            "seed": _SEED,
        }  # fmt: skip

    def widen(self, samples: Float[np.ndarray, " N"]) -> Float[np.ndarray, " M"]:
        """See `Widener`."""
        soundfile = optional.load("soundfile")
        with tempfile.TemporaryDirectory(prefix="moshijax-") as folder:
            read, write = Path(folder, "narrow.wav"), Path(folder, "wide.wav")
            soundfile.write(read, samples, self.rate, "FLOAT")
            with contextlib.suppress(OSError):  # it has ended, which the answer says
                self._process.stdin.write(json.dumps({"read": str(read), "write": str(write)}) + "\n")
                self._process.stdin.flush()
            answer = self._answer()
            if "ended" in answer:
                raise MoshijaxError(
                    f"AudioSR ended with exit code {answer['ended']}: see whether it had enough memory, and run the "
                    "same command again to continue"
                )
            if "error" in answer:
                raise DataError(f"AudioSR cannot widen it ({answer['error']}): leave the recording out")
            return soundfile.read(write, dtype="float32")[0]

    def close(self) -> None:
        """End the program."""
        self._process.kill()
        self._process.wait()
        self._process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # what it has not read
            self._process.stdin.close()

    def _answer(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if line:
            return json.loads(line)
        return {"ended": self._process.wait()}

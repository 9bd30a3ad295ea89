"""CosyVoice: voices of its 300M-SFT model by name, and any voice from a recording by CosyVoice 2.

Written against the interface of https://github.com/FunAudioLLM/CosyVoice of 2025 (`cosyvoice/cli/cosyvoice.py`), which
is not on PyPI; what is there under this name is something else. Never run with the published weights by us: every clip
is heard again, and known faults (repeated and lost words, half sentences) are rejected.
"""

from __future__ import annotations

import importlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from moshijax import optional
from moshijax.data.synthesis.clips import Clip
from moshijax.data.synthesis.voices import CosyVoice
from moshijax.errors import ConfigError, DataError, MoshijaxError

_PROMPT_RATE = 16_000  # Hz
_LONGEST_PROMPT = 30.0  # seconds
_CONFIGS = {"cosyvoice2.yaml": "CosyVoice2", "cosyvoice.yaml": "CosyVoice"}


class CosyVoiceSynthesizer:
    """CosyVoice; see `clips.Synthesizer`."""

    def sound(self, text: str, voice: CosyVoice, seed: int) -> Clip:
        """Speak one utterance, piece by piece, as CosyVoice cuts it."""
        model, torch = _model(voice.folder), optional.load("torch")
        torch.manual_seed(seed)
        if voice.speaker:
            known = model.list_available_spks()
            if voice.speaker not in known:
                raise ConfigError(f"{voice.folder} has no speaker {voice.speaker!r}: choose one of {', '.join(known)}")
            pieces = model.inference_sft(text, voice.speaker, stream=False, speed=voice.speed)
        else:
            pieces = model.inference_zero_shot(
                text, voice.prompt_text, _prompt(voice.prompt), stream=False, speed=voice.speed
            )
        samples = [piece["tts_speech"].cpu().numpy().reshape(-1) for piece in pieces]
        if not samples:
            raise DataError(f"CosyVoice gave nothing for {text[:40]!r}: write it in other words")
        return Clip(np.concatenate(samples).astype(np.float32), int(model.sample_rate))


@cache
def _model(folder: str) -> Any:
    """Return the model of a folder, one per process.

    Raises:
      MoshijaxError: CosyVoice is not there.
      ConfigError: the folder holds no model of it.
    """
    found = [name for config, name in _CONFIGS.items() if (Path(folder) / config).is_file()]
    if not found:  # (a name would be downloaded)
        raise ConfigError(f"{folder} is no folder with {' or '.join(_CONFIGS)}: fetch the model, and name its folder")
    try:
        module = importlib.import_module("cosyvoice.cli.cosyvoice")
    except ModuleNotFoundError as error:
        raise MoshijaxError(
            f"CosyVoice is not installed ({error}): clone https://github.com/FunAudioLLM/CosyVoice, install its "
            "requirements, and name the clone and its third_party/Matcha-TTS in PYTHONPATH"
        ) from None
    return getattr(module, found[0])(folder)


@cache
def _prompt(path: str) -> Any:
    """Return the recording of a voice, float32 [1, N] at 16 kHz."""
    from moshijax.runtime import audio

    samples = audio.read_channel(path, _PROMPT_RATE)
    seconds = len(samples) / _PROMPT_RATE
    if seconds > _LONGEST_PROMPT:
        raise ConfigError(f"{path} lasts {seconds:.1f} s, CosyVoice takes {_LONGEST_PROMPT:g}: cut it")
    return optional.load("torch").from_numpy(np.ascontiguousarray(samples, np.float32))[None]

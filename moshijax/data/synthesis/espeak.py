"""espeak-ng through ctypes: text to samples with exact word and phoneme times.

The library keeps global state and is licensed GPL-3, so this module is imported only where a process of its own
speaks (`moshijax.data.synthesis.render`), never by the rest of the package.

espeak-ng seeds its noise from the clock and carries state from one utterance to the next. `Espeak` therefore loads the
library afresh and seeds it: the same voice, texts and seed give the same bytes in any process.
"""

from __future__ import annotations

import _ctypes
import ctypes
import os
from functools import cache

import numpy as np

from moshijax import optional
from moshijax.data.synthesis.speech import Span, Speech, word_spans
from moshijax.data.synthesis.voices import EspeakVoice
from moshijax.errors import DataError, MoshijaxError

_SYNCHRONOUS = 2
_PHONEME_EVENTS, _PHONEME_IPA, _DO_NOT_EXIT = 0x0001, 0x0002, 0x8000
_WORD, _PHONEME, _END_OF_LIST = 1, 7, 0
_RATE, _VOLUME, _PITCH, _RANGE = 1, 2, 3, 4
_UTF8 = 1


class _EventId(ctypes.Union):
    _fields_ = [("number", ctypes.c_int), ("name", ctypes.c_char_p), ("string", ctypes.c_char * 8)]


class _Event(ctypes.Structure):
    _fields_ = [
        ("type", ctypes.c_int),
        ("unique_identifier", ctypes.c_uint),
        ("text_position", ctypes.c_int),
        ("length", ctypes.c_int),
        ("audio_position", ctypes.c_int),
        ("sample", ctypes.c_int),
        ("user_data", ctypes.c_void_p),
        ("id", _EventId),
    ]


_Callback = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.POINTER(_Event))


@cache
def _paths() -> tuple[str, str]:
    espeakng_loader = optional.load("espeakng_loader")
    return str(espeakng_loader.get_library_path()), str(espeakng_loader.get_data_path())


@cache
def variants() -> tuple[str, ...]:
    """Return the timbre variants that this installation has."""
    return tuple(sorted(os.listdir(os.path.join(_paths()[1], "voices", "!v"))))


class Espeak:
    """A freshly loaded and seeded espeak-ng. Close it before opening the next: the library is one per process.

    Raises:
      MoshijaxError: the library cannot start.
    """

    def __init__(self, seed: int):
        library_path, data_path = _paths()
        self._library = ctypes.CDLL(library_path)
        options = _PHONEME_EVENTS | _PHONEME_IPA | _DO_NOT_EXIT
        self._library.espeak_Initialize.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
        self.sample_rate = self._library.espeak_Initialize(_SYNCHRONOUS, 2000, data_path.encode(), options)
        if self.sample_rate <= 0:
            raise MoshijaxError(f"espeak-ng could not start with data at {data_path}: reinstall espeakng-loader")
        self._library.espeak_ng_SetRandSeed.argtypes = [ctypes.c_long]
        self._library.espeak_ng_SetRandSeed(seed & 0x7FFFFFFF)
        self._library.espeak_Synth.argtypes = [
            ctypes.c_char_p, ctypes.c_size_t, ctypes.c_uint, ctypes.c_int, ctypes.c_uint, ctypes.c_uint,
            ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self._callback = _Callback(self._receive)
        self._library.espeak_SetSynthCallback(self._callback)
        self._voice: EspeakVoice | None = None
        self._chunks: list[np.ndarray] = []
        self._events: list[tuple[int, int, int, str]] = []

    def close(self) -> None:
        """Unload the library. Closing twice does nothing."""
        if self._library is not None:
            self._library.espeak_Terminate()
            _ctypes.dlclose(self._library._handle)
            self._library = None

    def _receive(self, samples, count, events) -> int:
        if samples and count > 0:
            self._chunks.append(np.ctypeslib.as_array(samples, (count,)).copy())
        index = 0
        while events[index].type != _END_OF_LIST:
            event = events[index]
            if event.type in (_WORD, _PHONEME):
                # The symbol has 8 bytes and no terminator when it fills them; a cut character at its end is dropped.
                name = bytes(event.id.string).decode("utf-8", "ignore") if event.type == _PHONEME else ""
                self._events.append((event.type, event.sample, event.text_position, name))
            index += 1
        return 0

    def _set_voice(self, voice: EspeakVoice) -> None:
        if voice == self._voice:
            return
        if voice.variant and voice.variant not in variants():
            raise DataError(
                f"voice variant {voice.variant!r} is not in espeak-ng (it would be ignored silently): "
                f"use one of {', '.join(variants())}"
            )
        name = voice.language + (f"+{voice.variant}" if voice.variant else "")
        if self._library.espeak_SetVoiceByName(name.encode()) != 0:
            raise DataError(
                f"voice {voice.language!r} is not in espeak-ng: use a language such as 'en-us', 'en', 'fr', or "
                "the voice hibari"
            )
        for parameter, value in (
            (_RATE, voice.rate), (_VOLUME, 100), (_PITCH, voice.pitch), (_RANGE, voice.range),
        ):  # fmt: skip
            self._library.espeak_SetParameter(parameter, int(value), 0)
        self._voice = voice

    def speak(self, text: str, voice: EspeakVoice) -> Speech:
        """Speak one utterance.

        Raises:
          DataError: an unknown voice, or a text in which nothing is spoken.
          MoshijaxError: the library fails.
        """
        text = " ".join(text.split())
        self._set_voice(voice)
        self._chunks, self._events = [], []
        data = text.encode()
        code = self._library.espeak_Synth(data, len(data) + 1, 0, 1, 0, _UTF8, None, None)
        if code != 0:
            raise MoshijaxError(f"espeak-ng failed with code {code} on {text!r}")
        if not self._chunks:
            raise DataError(f"nothing is spoken in {text!r}: give it at least one word")
        samples = np.concatenate(self._chunks).astype(np.float32) / 32768.0
        words, phonemes = _align(text, self._events, len(samples))
        return Speech.of(samples, self.sample_rate, words, phonemes)


def _align(text: str, events: list[tuple[int, int, int, str]], total: int) -> tuple[list[Span], list[Span]]:
    """Words and phonemes with times in samples from espeak's event list.

    A token may have several word events ("42") or none (see `word_spans`).
    """
    tokens = text.split(" ")
    token_of_position = []
    for index, token in enumerate(tokens):
        token_of_position += [index] * (len(token) + 1)
    starts: dict[int, int] = {}
    for kind, sample, position, _ in events:
        if kind == _WORD:
            index = token_of_position[min(max(position - 1, 0), len(token_of_position) - 1)]
            starts[index] = min(sample, starts.get(index, sample))
    spoken = [(sample, name) for kind, sample, _, name in events if kind == _PHONEME]
    phonemes = []
    for (start, name), (end, _) in zip(spoken, spoken[1:] + [(total, "")], strict=True):
        symbol = name.rstrip("\0")
        if not symbol.strip("ˈˌː _|"):
            continue
        if end <= start and phonemes and phonemes[-1][2] == start:
            # A vowel and a following "l" come as one sound with all the time given to the vowel.
            before, vowel_start, vowel_end = phonemes.pop()
            start = vowel_end - (vowel_end - vowel_start) // 3
            phonemes.append((before, vowel_start, start))
        if end > start:
            phonemes.append((symbol, start, min(end, total)))
    if not phonemes:
        raise DataError(f"nothing is spoken in {text!r}: give it at least one word")
    if not starts:
        starts[0] = phonemes[0][1]
    return word_spans(tokens, starts, phonemes, total), phonemes

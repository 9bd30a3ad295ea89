"""hibari-tts: a network of 8 MB that speaks American English in one voice, warped here into many.

The network returns one frame per 12.5 ms: the log magnitudes of three branches (a harmonic filter, noise, and a branch
with phases of its own), the phases, and the fundamental frequency. A voice changes those before hibari's own synthesis
makes sound of them. The noise is seeded and the network runs on one thread: the same texts, voices and seed give the
same bytes in any process of one machine.
"""

from __future__ import annotations

import difflib
from functools import cache, lru_cache
from typing import Any

import numpy as np

from moshijax import optional
from moshijax.data.synthesis.speech import Span, Speech, word_spans
from moshijax.data.synthesis.voices import HibariVoice
from moshijax.errors import DataError, MoshijaxError

#: Inner node of the network: frames of 25 ms that each symbol lasts.
_DURATIONS = "/Clip_output_0"
_SAMPLES = 600  # of such a frame
#: Samples by which sound runs ahead of the durations: the mean over edges of "s", which differ by 12 ms.
_AHEAD = 960
_MARGIN = 600  # samples kept before the first sound and after the last
_LEVEL_FRAME = 120  # samples
_QUIET_DB = -35.0  # below the loudest moment, what follows the last sound before a pause is silence
_LONGEST = 400  # symbols in a sentence, as in hibari
_REMEMBERED = 64  # sentences: a small world has few answers, which are said again and again
_VOICED_HZ = 40.0
_BIN_HZ = 20.0

#: Symbols that stand for no sound of their own; their time belongs to the sound that follows.
_MARKS = "ˈˌː "
_PUNCTUATION = ';:,.!?—…"()“”'
#: hibari writes diphthongs, affricates and taps as single letters.
_IPA = {
    "A": "eɪ", "I": "aɪ", "O": "oʊ", "Q": "əʊ", "W": "aʊ", "Y": "ɔɪ", "ʤ": "dʒ", "ʧ": "tʃ", "T": "ɾ", "ᵊ": "ə",
}  # fmt: skip


@cache
def _network() -> Any:
    """hibari with the durations as one more output of its network."""
    hibari, voices = optional.load("hibari"), optional.load("hibari.voices")
    # Protobuf joins messages that follow one another: this appends to the list of the graph's outputs (field 7 of the
    # model, 12 of the graph, 1 of a value).
    with open(voices.voice_path(voices.DEFAULT, download_missing=False), "rb") as file:
        model = file.read() + _field(7, _field(12, _field(1, _DURATIONS.encode())))
    try:
        return hibari.Hibari(model=model)
    except Exception as error:  # onnxruntime has many
        raise MoshijaxError(
            f"the network of hibari-tts {hibari.__version__} does not give durations ({error}): "
            "pip install hibari-tts==0.2.1"
        ) from None


@lru_cache(_REMEMBERED)
def _frames(symbols: str, speed: float) -> tuple[np.ndarray, ...]:
    """What the network says of a sentence: frames as `warp` takes them, and durations."""
    network = _network()
    inputs = {"ids": np.array([network.ids(symbols)], np.int64), "speed": np.array([speed], np.float32)}
    *frames, durations = network.sess.run(None, inputs)
    return *(frame[0] for frame in frames), durations


def _field(number: int, content: bytes) -> bytes:
    """A protobuf field of at most 127 bytes."""
    return bytes([number << 3 | 2, len(content)]) + content


class Hibari:
    """A seeded hibari."""

    def __init__(self, seed: int) -> None:
        self._network = _network()
        self._noise = np.random.default_rng(seed)

    def close(self) -> None:
        """Do nothing: the network is kept for the next dialogue."""

    def speak(self, text: str, voice: HibariVoice) -> Speech:
        """Speak one utterance of American English, sentence by sentence.

        Raises:
          DataError: nothing is spoken in the text, or a sentence is too long.
        """
        tokens = text.split()
        samples: list[np.ndarray] = []
        phonemes: list[Span] = []
        starts: dict[int, int] = {}
        first_token = begin = 0
        for sentence in self._network.split_sentences(" ".join(tokens)):
            words = sentence.split()
            spoken, symbols = self._symbols(sentence)
            if len(symbols) > _LONGEST:
                raise DataError(
                    f"a sentence of {len(symbols)} phonemes is longer than the {_LONGEST} that hibari speaks at once: "
                    f"split {sentence[:40]!r}..."
                )
            sounds: list[tuple[int, Span]] = []
            if symbols:
                wave, edges = self._sound("".join(symbol for symbol, _ in symbols), voice)
                sounds = _sounds(symbols, edges, wave)
                samples.append(wave)
            phonemes += [(symbol, begin + start, begin + end) for _, (symbol, start, end) in sounds]
            word_at = {word: start for word, (_, start, _) in reversed(sounds)}
            for token, word in _aligned(words, spoken):
                if word in word_at:
                    starts[first_token + token] = begin + word_at[word]
            first_token += len(words)
            begin = sum(map(len, samples))
        if not phonemes:
            raise DataError(f"nothing is spoken in {text!r}: give it at least one word")
        if not starts:
            starts[0] = phonemes[0][1]
        first = max(0, phonemes[0][1] - _MARGIN)
        wave = np.concatenate(samples)[first : phonemes[-1][2] + _MARGIN]
        phonemes = [(symbol, start - first, end - first) for symbol, start, end in phonemes]
        starts = {token: start - first for token, start in starts.items()}
        return Speech.of(wave, self._network.sample_rate, word_spans(tokens, starts, phonemes, len(wave)), phonemes)

    def _symbols(self, sentence: str) -> tuple[list[str], list[tuple[str, int]]]:
        """The words that are spoken, numbers and abbreviations written out; and every symbol with its word."""
        g2p = self._network.g2p
        normalize = optional.load("hibari.g2p.normalize").normalize
        # "[text](/phonemes/)" would be markup.
        text = normalize(sentence.replace("](", "],("))
        word, symbols = 0, []
        for token in g2p.phonemize_tokens(g2p.tokenize(text)):
            symbols += [(symbol, word) for symbol in token.phonemes or ""]
            if token.whitespace:
                word += 1
                symbols.append((" ", word))
        while symbols and symbols[-1][0] == " ":
            symbols.pop()
        while symbols and symbols[0][0] == " ":
            symbols.pop(0)
        return text.split(), [(symbol, word) for symbol, word in symbols if symbol in self._network.vocab]

    def _sound(self, symbols: str, voice: HibariVoice) -> tuple[np.ndarray, np.ndarray]:
        """The waveform, and the samples between which each symbol is heard."""
        *frames, durations = _frames(symbols, voice.speed)
        wave = optional.load("hibari.dsp").synth(*warp(*frames, voice), self._noise)
        edges = np.cumsum(durations.astype(int)) * _SAMPLES - _AHEAD  # (the first symbol is a pause)
        return wave, np.clip(edges, 0, len(wave))


def warp(
    harmonic: np.ndarray,
    phase: np.ndarray,
    noise: np.ndarray,
    free: np.ndarray,
    free_phase: np.ndarray,
    f0: np.ndarray,
    voice: HibariVoice,
) -> tuple[np.ndarray, ...]:
    """Return the network's frames in another voice.

    Args:
      harmonic, noise, free: log magnitudes, float32 [bins, F].
      phase, free_phase: of the harmonic filter and of the free branch, float32 [bins, F].
      f0: in Hz, float32 [F]; below 40 there is no voice.
      voice: 1 everywhere changes nothing.
    """
    if voice.pitch == voice.range == voice.formants == 1.0:
        return harmonic, phase, noise, free, free_phase, f0
    voiced = f0 > _VOICED_HZ
    harmonic = _envelope(harmonic, np.where(voiced, f0, np.inf) / _BIN_HZ)
    if voiced.any():
        octaves = np.log2(f0[voiced])
        middle = octaves.mean()
        f0 = f0.copy()
        f0[voiced] = np.exp2(middle + np.log2(voice.pitch) + voice.range * (octaves - middle))
        # Harmonics that are nearer to each other have more power in all.
        harmonic = harmonic + np.float32(0.5 * np.log(voice.pitch))
    if voice.formants != 1.0:
        bins = np.arange(len(harmonic)) / voice.formants
        lower = np.minimum(bins.astype(int), len(harmonic) - 2)
        share = np.clip(bins - lower, 0.0, 1.0).astype(np.float32)[:, None]

        def moved(x: np.ndarray) -> np.ndarray:
            return x[lower] * (1 - share) + x[lower + 1] * share

        nearest = np.minimum(np.rint(bins).astype(int), len(harmonic) - 1)
        harmonic, phase, noise, free = map(moved, (harmonic, phase, noise, free))
        free_phase = free_phase[nearest]
    return harmonic, phase, noise, free, free_phase, f0


def _envelope(harmonic: np.ndarray, spacing: np.ndarray) -> np.ndarray:
    """Interpolate between the harmonics, `spacing` [F] bins apart: elsewhere the network's filter is arbitrary."""
    bins = np.arange(len(harmonic))
    found = harmonic.copy()
    for frame in np.flatnonzero(np.isfinite(spacing)):
        at = np.arange(1, int(bins[-1] / spacing[frame]) + 1) * spacing[frame]
        found[:, frame] = np.interp(bins, at, np.interp(at, bins, harmonic[:, frame]))
    return found


def _sounds(symbols: list[tuple[str, int]], edges: np.ndarray, wave: np.ndarray) -> list[tuple[int, Span]]:
    """Word and span of every sound: marks and spaces belong to the next, pauses to none."""
    levels = np.square(wave[: len(wave) // _LEVEL_FRAME * _LEVEL_FRAME].reshape(-1, _LEVEL_FRAME)).mean(axis=1)
    loud = levels > levels.max() * 10 ** (_QUIET_DB / 10)
    sounds: list[tuple[int, Span]] = []
    start = None
    for n, (symbol, word) in enumerate(symbols):
        begin, end = int(edges[n]), int(edges[n + 1])
        if symbol in _PUNCTUATION:
            start = None
            continue
        start = begin if start is None else start
        if symbol in _MARKS:
            continue
        if n + 1 == len(symbols) or symbols[n + 1][0] in _PUNCTUATION:
            heard = np.flatnonzero(loud[start // _LEVEL_FRAME : end // _LEVEL_FRAME])
            if len(heard):
                end = (start // _LEVEL_FRAME + int(heard[-1]) + 1) * _LEVEL_FRAME
        if end > start:
            sounds.append((word, (_IPA.get(symbol, symbol), start, end)))
        start = None
    return sounds


def _aligned(words: list[str], spoken: list[str]) -> list[tuple[int, int]]:
    """Pairs of a written and a spoken word that begin together: numbers and abbreviations are spoken in several."""
    pairs = []
    for kind, i, i_end, j, j_end in difflib.SequenceMatcher(None, words, spoken, autojunk=False).get_opcodes():
        if kind == "equal":
            pairs += zip(range(i, i_end), range(j, j_end), strict=True)
        elif kind == "replace":
            pairs.append((i, j))
    return pairs

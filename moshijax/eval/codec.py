"""Figures and examples of a codec, in training and on any codec: distances, code stability, discriminability."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from jax.experimental.multihost_utils import process_allgather

from moshijax import codec, optional, weights
from moshijax.codec import MimiConfig
from moshijax.codec.training import codec_variables
from moshijax.data import AudioData, audio, audio_batches
from moshijax.data.manifest import Item, read_manifest, read_recordings
from moshijax.data.transcript import read_sidecar
from moshijax.errors import ConfigError, DataError
from moshijax.eval import signals
from moshijax.eval.abx import AbxResult, Token, abx, cut, triphones
from moshijax.nn.vq import codebook_tables
from moshijax.optional import MissingPackage
from moshijax.report.page import Page
from moshijax.train.evaluate import Snapshot
from moshijax.train.experiment import ExperimentConfig

if TYPE_CHECKING:
    from jaxtyping import Float, Int

log = logging.getLogger(__name__)

SHIFT = 0.04  # seconds; half a frame, the hardest shift for codes
EXAMPLES = 3
ABX_RECORDINGS = 16  # of the held-out ones, while a codec trains
Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CodecEvaluation:
    """What `moshijax eval` measures.

    Attributes:
        codec: a run directory, or published weights (`moshijax.weights.load_mimi`).
        speech: manifest or folder of recordings that the codec was not trained on.
        clips: windows of `seconds` taken from them.
        codebooks: numbers of codebooks to decode from; () is 2, 4 and 8, as many as there are, and all.
        phonemes: manifest of recordings whose sidecars list phonemes, for ABX; None: no ABX.
        seed: of the choice of clips.
    """

    codec: str
    speech: str
    clips: int = 16
    seconds: float = 8.0
    codebooks: tuple[int, ...] = ()
    phonemes: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.clips < 1 or not self.seconds > 0:
            raise ConfigError(f"clips {self.clips} and seconds {self.seconds} must be positive")


@dataclass
class Measured:
    """Figures by name, notes on what was not measured, and the first clips as (recording, {codebooks: decoded})."""

    values: dict[str, float] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    examples: list[tuple[np.ndarray, dict[int, np.ndarray]]] = field(default_factory=list)


def codebook_counts(config: MimiConfig, wanted: tuple[int, ...]) -> tuple[int, ...]:
    """Numbers of codebooks to decode from.

    Raises:
        ConfigError: more than the codec has.
    """
    counts = wanted or (*(n for n in (2, 4, 8) if n < config.num_codebooks), config.num_codebooks)
    if any(not 1 <= n <= config.num_codebooks for n in counts):
        raise ConfigError(f"codebooks {counts} must be 1 to {config.num_codebooks}, what the codec has")
    return counts


def measure_distances(
    config: MimiConfig,
    params: dict[str, Any],
    clips: Float[np.ndarray, "B N"],
    counts: tuple[int, ...],
    progress: Progress = lambda done, total: None,
) -> Measured:
    """SI-SDR, mel distance, STOI and PESQ of decoded clips, and the stability of their codes.

    Means are over the clips for which a figure is defined. ``noise`` is white noise as loud as the clip in place of
    what the codec decoded, because STOI of it is not 0. ``stability`` is the share of codes that stay after decoding
    and encoding again, ``stability_shifted`` with 40 ms of the decoded audio cut off between.

    Args:
        config: of the codec.
        params: its variables.
        clips: recordings at its sample rate.
        counts: numbers of codebooks to decode from.
        progress: called with clips done and all.
    """
    params, rate = codec.inference_layout(config, params), config.sample_rate
    metrics: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
        "si_sdr": signals.si_sdr,
        "mel": lambda y, x: signals.mel_distance(y, x, rate),
        "stoi": lambda y, x: signals.stoi(y, x, rate),
        "pesq": lambda y, x: signals.pesq(y, x, rate),
    }
    found: dict[str, list[float]] = {}
    measured = Measured()
    for number, clip in enumerate(clips):
        codes = np.asarray(codec.encode(config, params, clip[None]))
        decoded = {n: np.asarray(codec.decode(config, params, codes[:, :n]))[0, : len(clip)] for n in counts}
        heard = {f"{n}_codebooks": y for n, y in decoded.items()}
        heard["noise"] = np.random.default_rng(number).normal(0.0, clip.std(), len(clip)).astype(np.float32)
        for what, y in heard.items():
            for name in list(metrics):
                try:
                    found.setdefault(f"{what}/{name}", []).append(metrics[name](y, clip))
                except MissingPackage as error:
                    measured.notes.append(f"{name} is not measured: {error}")
                    del metrics[name]
        for name, shift in (("stability", 0.0), ("stability_shifted", SHIFT)):
            for q, share in enumerate(stability(config, params, codes, decoded[counts[-1]], shift)):
                found.setdefault(f"{name}/codebook_{q}", []).append(share)
        if number < EXAMPLES:
            measured.examples.append((clip, decoded))
        progress(number + 1, len(clips))
    for name, values in found.items():
        good = [v for v in values if math.isfinite(v)]
        if len(good) < len(values):
            measured.notes.append(f"{name} is not defined for {len(values) - len(good)} of {len(values)} clips")
        if good:
            measured.values[name] = float(np.mean(good))
    return measured


def stability(
    config: MimiConfig, params: dict[str, Any], codes: Int[np.ndarray, "1 Q T"], decoded: np.ndarray, shift: float
) -> Float[np.ndarray, " Q"]:
    """Share of codes that the decoded audio, `shift` seconds of it cut off, gives again; per codebook."""
    again = np.asarray(codec.encode(config, params, decoded[None, round(shift * config.sample_rate) :]))
    frames = min(again.shape[2], codes.shape[2])
    return (again[0, :, :frames] == codes[0, :, :frames]).mean(axis=1)


def phonemes_of(item: Item) -> list | None:
    """The list "phonemes" [symbol, [start, end], speaker] of a recording's sidecar, if it has one."""
    if not item.sidecar.is_file():
        return None
    found = read_sidecar(item.sidecar).get("phonemes")
    return found if isinstance(found, list) else None


def measure_abx(config: MimiConfig, params: dict[str, Any], items: Sequence[Item]) -> AbxResult:
    """ABX error of the first level, quantised, on two-channel recordings with phonemes in their sidecars; others are
    left out.

    Raises:
        DataError: a recording or sidecar cannot be used.
    """
    table = np.asarray(codebook_tables(params["codebooks"]["quantizer"]["semantic"])[0])
    layout, tokens = codec.inference_layout(config, params), []
    for item in items:
        places = triphones(phonemes_of(item) or ())
        if not places:
            continue
        signal = audio.read(item.audio, config.sample_rate)
        for label in sorted({place.speaker for place in places}):
            channel = 0 if label == "SPEAKER_MAIN" else 1
            frames = table[np.asarray(codec.encode(config, layout, signal[None, :, channel], num_codebooks=1))[0, 0]]
            for place in places:
                if place.speaker == label:
                    own = place._replace(speaker=f"{item.id} {label}")
                    tokens.append(Token(own, cut(place, frames, config.frame_rate)))
    return abx(tokens)


def draw_clips(config: MimiConfig, speech: str, clips: int, seconds: float, seed: int) -> Float[np.ndarray, "B N"]:
    """Windows with sound, of whole frames."""
    samples = max(1, round(seconds * config.frame_rate)) * config.frame_size
    data = AudioData(speech, None, clips, samples, config.sample_rate, speech_share=1.0)
    return audio_batches(data, seed).batch(0)["audio"]


def evaluate(evaluation: CodecEvaluation, out: Path, progress: Progress = lambda done, total: None) -> Measured:
    """Measure a codec and write ``metrics.json`` and ``report.html`` into a folder.

    Raises:
        ConfigError: the evaluation asks for codebooks that are not there.
        DataError: codec or recordings cannot be used.
    """
    config, params = weights.load_mimi(evaluation.codec)
    counts = codebook_counts(config, evaluation.codebooks)
    clips = draw_clips(config, evaluation.speech, evaluation.clips, evaluation.seconds, evaluation.seed)
    out.mkdir(parents=True, exist_ok=True)
    measured = measure_distances(config, params, clips, counts, progress)
    if evaluation.phonemes is not None:
        items = read_manifest(evaluation.phonemes).items
        if not any(map(phonemes_of, items)):
            raise DataError(f'{evaluation.phonemes}: no sidecar lists "phonemes" as [symbol, [start, end], speaker]')
        _add_abx(measured, measure_abx(config, params, items))
    (out / "metrics.json").write_text(json.dumps(measured.values, indent=2) + "\n", encoding="utf-8")
    write_page(out / "report.html", f"Codec {evaluation.codec}", config, measured)
    return measured


def _add_abx(measured: Measured, result: AbxResult) -> None:
    measured.notes.append(f"ABX over {result.cells} pairs of triphones, {result.comparisons} comparisons")
    if result.cells:
        measured.values["abx"] = result.error


DIGITS = {"si_sdr": 1, "pesq": 2}
LABELS = {"si_sdr": "SI-SDR, dB", "mel": "mel distance", "stoi": "STOI", "pesq": "PESQ"}


def write_page(path: Path, title: str, config: MimiConfig, measured: Measured) -> None:
    """The report: tables of the figures, and the examples to hear and see."""
    from moshijax.report import plots

    values = measured.values
    page = Page(title, f"{config.num_codebooks} codebooks of {config.bins}, {config.frame_rate:g} frames per second.")
    counts = sorted({int(name.split("_")[0]) for name in values if "_codebooks/" in name})
    names = [name for name in LABELS if f"{counts[-1]}_codebooks/{name}" in values] if counts else []
    page.section("Distance from the recordings", "Means over the clips; noise of their level shows what says nothing.")
    heard = {**{f"{n}_codebooks": n for n in counts}, "noise": "noise"}
    rows = [
        [label, *(f"{values.get(f'{what}/{x}', math.nan):.{DIGITS.get(x, 3)}f}" for x in names)]
        for what, label in heard.items()
    ]
    page.table(["codebooks", *(LABELS[name] for name in names)], rows)
    page.section("Stability of the codes", "Share of codes that stay after decoding and encoding again.")
    kinds = [kind for kind in ("stability", "stability_shifted") if f"{kind}/codebook_0" in values]
    heads = {"stability": "in place", "stability_shifted": "shifted by 40 ms"}
    page.table(
        ["codebook", *(heads[kind] for kind in kinds)],
        [[q, *(f"{values[f'{kind}/codebook_{q}']:.3f}" for kind in kinds)] for q in range(config.num_codebooks)],
    )
    if "abx" in values:
        page.section("Phonemes", f"ABX error of the semantic level: {100 * values['abx']:.1f} % (chance is 50 %).")
    if measured.notes:
        page.section("Notes")
    for note in measured.notes:
        page.text(note)
    for number, (clip, decoded) in enumerate(measured.examples):
        page.section(f"Clip {number + 1}")
        shown = {"recording": clip, **{f"{n} codebooks": y for n, y in decoded.items()}}
        page.clips([(name, "", pcm) for name, pcm in shown.items()], config.sample_rate)
        page.figure(plots.spectrograms(shown, config.sample_rate), "Spectrograms of the clips above, in order.")
    page.write(path)


class CodecEvaluator:
    """Evaluator of a training run: the figures of `measure_distances` on the first held-out batch, ABX on the first
    held-out recordings if they have phonemes, and a page with the clips to hear, ``evaluation.html`` in the run
    directory."""

    def __init__(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        held_out = experiment.task.audio.eval_data
        self._clips = audio_batches(held_out, experiment.seed).batch(0)["audio"]
        items = read_recordings(held_out.manifest).items[:ABX_RECORDINGS]
        self._spoken = [item for item in items if phonemes_of(item)]
        self._page = run_dir / "evaluation.html"

    def __call__(self, snapshot: Snapshot) -> Mapping[str, float]:
        # On one device, whatever the mesh: every process measures the same.
        params, model_state = process_allgather((snapshot.params, snapshot.model_state), tiled=True)
        variables = codec_variables({"params": params, "codebooks": model_state})
        config = snapshot.model_config
        measured = measure_distances(config, variables, self._clips, codebook_counts(config, ()))
        if self._spoken:
            _add_abx(measured, measure_abx(config, variables, self._spoken))
        if jax.process_index() == 0:
            try:
                optional.load("matplotlib")
                write_page(self._page, f"Step {snapshot.step}", config, measured)
            except MissingPackage as error:
                log.warning("no %s: %s", self._page.name, error)
        return {f"eval/{name}": value for name, value in measured.values.items()}

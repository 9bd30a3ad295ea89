"""The report of a codec's figures: tables, audio clips and spectrograms."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from moshijax.eval.evaluation import Results

if TYPE_CHECKING:
    from moshijax.codec import MimiConfig
    from moshijax.eval.codec import Measured
    from moshijax.report.page import Page

DIGITS = {"si_sdr": 1, "pesq": 2, "dnsmos": 2}
LABELS = {
    "si_sdr": "SI-SDR, dB",
    "mel": "mel distance",
    "stoi": "STOI",
    "pesq": "PESQ",
    "dnsmos": "DNSMOS",
    "word_error_rate": "words heard wrong",
}


def results(title: str, config: MimiConfig, measured: Measured) -> Results:
    """Return measured figures of a codec with the sections that show them."""
    sections = [partial(draw, measured=measured, config=config) for draw in (_distances, _stability, _phonemes, _clips)]
    lead = f"{config.num_codebooks} codebooks of {config.bins}, {config.frame_rate:g} frames per second."
    return Results(title, lead, measured.values, measured.notes, sections, calls=measured.calls)


def _distances(page: Page, measured: Measured, config: MimiConfig) -> None:
    values = measured.values
    counts = sorted({int(name.split("_")[0]) for name in values if "_codebooks/" in name})
    names = [x for x in LABELS if counts and (f"{counts[-1]}_codebooks/{x}" in values or x in measured.absent)]
    page.section(
        "Distance from the recordings",
        "Means over the clips; noise of their level is the floor. A - has no judge.",
    )
    heard = {**{f"{n}_codebooks": n for n in counts}, "noise": "noise"}
    if any(name.startswith("recording/") for name in values):
        heard["recording"] = "the recordings"
    rows = [[label, *(_cell(values.get(f"{what}/{x}"), x) for x in names)] for what, label in heard.items()]
    page.table(["codebooks", *(LABELS[name] for name in names)], rows)


def _cell(value: float | None, name: str) -> str:
    """A figure, "-" where there is none."""
    return "-" if value is None else f"{value:.{DIGITS.get(name, 3)}f}"


def _stability(page: Page, measured: Measured, config: MimiConfig) -> None:
    values = measured.values
    page.section("Stability of the codes", "Share of codes that stay after decoding and encoding again.")
    kinds = [kind for kind in ("stability", "stability_shifted") if f"{kind}/codebook_0" in values]
    heads = {"stability": "in place", "stability_shifted": "shifted by 40 ms"}
    page.table(
        ["codebook", *(heads[kind] for kind in kinds)],
        [[q, *(f"{values[f'{kind}/codebook_{q}']:.3f}" for kind in kinds)] for q in range(config.num_codebooks)],
    )


def _phonemes(page: Page, measured: Measured, config: MimiConfig) -> None:
    if "abx" in measured.values:
        error = measured.values["abx"]
        page.section("Phonemes", f"ABX error of the semantic level: {100 * error:.1f} % (chance is 50 %).")


def _clips(page: Page, measured: Measured, config: MimiConfig) -> None:
    from moshijax.report import plots

    for number, (clip, decoded) in enumerate(measured.examples):
        page.section(f"Clip {number + 1}")
        shown = {"recording": clip, **{f"{n} codebooks": y for n, y in decoded.items()}}
        page.clips([(name, "", pcm) for name, pcm in shown.items()], config.sample_rate)
        page.figure(plots.spectrograms(shown, config.sample_rate), "Spectrograms of the clips above, in order.")

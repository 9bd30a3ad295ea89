"""Train and measure a small codec in the variants that docs/codec-training.md compares.

python -m tools.studies.codec_ablations ablations            # half an hour on two cores
python -m tools.studies.codec_ablations ablations --heldout recordings

Every stage is a `moshijax` command: speech of espeak-ng, its phonetic teacher, `train`, `eval`. Finished stages are
kept, so the same command continues. It prints the table and writes OUT/usage.png, OUT/codebooks.png,
OUT/adversarial.png and OUT/with_reconstruction.png.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path

from moshijax.report import plots
from moshijax.weights.run_files import read_metrics

PLAIN = "codec/ablation.gin"
ADVERSARIAL = "codec/ablation_adversarial.gin"
CONTINUED = "--gin.init_from={runs}/full"
WITHOUT_DROPOUT = "--gin.task.quantizer.dropout=False"
# Name -> recipe and overrides; {runs} is the folder of the runs.
VARIANTS = {
    "full": [PLAIN],
    "no teacher": [PLAIN, "--gin.task.loss.distillation=0.0", "--gin.task.loss.latent_distillation=0.0"],
    "no dropout": [PLAIN, WITHOUT_DROPOUT],
    # Seven of the eight levels are one residual quantiser, whose first hears the teacher.
    "first level taught": [PLAIN, WITHOUT_DROPOUT, "--gin.task.model.quantizer.semantic=7"],
    # These start from a codec that can speak: minutes are too short for discriminators to teach that.
    "adversarial": [ADVERSARIAL, CONTINUED],
    "with reconstruction": [ADVERSARIAL, CONTINUED, "--gin.task.loss.mel=2.0", "--gin.task.loss.waveform=0.1"],
    # The same number of further steps without discriminators.
    "continued": [
        PLAIN,
        CONTINUED,
        "--gin.steps=200",
        "--gin.task.audio.data.batch_size=4",
        "--gin.optimizer.learning_rate=8e-4",
    ],
}
FROM_SCRATCH = tuple(name for name, words in VARIANTS.items() if CONTINUED not in words)
ADVERSARIAL_NAMES = tuple(name for name, (recipe, *_) in VARIANTS.items() if recipe == ADVERSARIAL)
COUNTS = (2, 4, 8)
# Panel -> metric -> label.
ADVERSARIAL_CURVES = {
    "hinge loss of the discriminators": {"train/discriminator/loss": "2 is not to know"},
    "share of right calls": {
        "train/discriminator/right_on_real": "on recordings",
        "train/discriminator/right_on_fake": "on the codec",
    },
    "losses of the codec": {
        "train/feature/loss": "feature",
        "train/mel/loss": "mel",
        "train/distillation/loss": "distillation",
        "train/commitment/loss": "commitment",
    },
}


def moshijax(*words: object) -> None:
    line = [sys.executable, "-m", "moshijax.cli.main", *map(str, words)]
    print("$", shlex.join(["moshijax", *line[3:]]), flush=True)
    subprocess.run(line, check=True)


def make_speech(out: Path) -> None:
    """Make speech for training with its teacher, words for ABX and sentences for distances; all in different voices."""
    if not (out / "speech" / "manifest.jsonl").exists():
        moshijax("data", "synthesize", "data/dialogues", out / "speech", "--seed", 1, "--copies", 8)
    if not (out / "speech" / "teacher" / "teacher.json").exists():
        moshijax("data", "teacher", out / "speech" / "manifest.jsonl")
    if not (out / "phonemes" / "manifest.jsonl").exists():
        moshijax("data", "synthesize", "data/phonemes", out / "phonemes", "--seed", 2)
    if not (out / "heldout" / "manifest.jsonl").exists():
        unrelated = "data/small_world/unrelated_heldout.txt"
        moshijax("data", "synthesize", unrelated, out / "heldout", "--seed", 3, "--calls", 24)


def folder(out: Path, kind: str, name: str) -> Path:
    return out / kind / name.replace(" ", "_")


def run(out: Path, name: str, heldout: Path) -> dict[str, float]:
    """Train and measure a variant, and return its figures."""
    run_dir, report = folder(out, "runs", name), folder(out, f"reports_{heldout.name}", name)
    if not (report / "results.json").exists():
        recipe, *overrides = (word.format(runs=out / "runs") for word in VARIANTS[name])
        field = "--gin.task.audio.data"
        data = [f"{field}.manifest={out / 'speech'}", f"{field}.teacher={out / 'speech' / 'teacher'}"]
        moshijax("train", recipe, "--run-dir", run_dir, *data, *overrides)
        where = [
            f"--gin.evaluation.codec={run_dir}",
            f"--gin.evaluation.speech={heldout}",
            "--gin.evaluation.seconds=4.0",
        ]
        phonemes = f"--gin.evaluation.phonemes={out / 'phonemes' / 'manifest.jsonl'}"
        moshijax("eval", "eval/codec.gin", "--out", report, *where, phonemes)
    return json.loads((report / "results.json").read_text(encoding="utf-8"))["values"]


def usage_of(lines: list[dict]) -> list[tuple[int, list[float]]]:
    """Return the steps and the usage of every codebook."""
    name = "train/codebook_{}/usage_entropy"
    return [(x["step"], [x[name.format(q)] for q in range(COUNTS[-1])]) for x in lines if name.format(0) in x]


def draw(out: Path, found: dict[str, dict[str, float]]) -> None:
    metrics = {name: read_metrics(folder(out, "runs", name) / "metrics.jsonl") for name in FROM_SCRATCH}
    figure, axes = plots.new_figure(11, 3.2, 1, len(metrics), sharey=True)
    for ax, (name, lines) in zip(axes.flat, metrics.items(), strict=True):
        steps, usage = zip(*usage_of(lines), strict=True)
        for q, colour in zip(range(COUNTS[-1]), plots.COLOURS, strict=True):
            ax.plot(steps, [row[q] for row in usage], color=colour, linewidth=1.2, label=str(q))
        ax.axhline(0.9, color=plots.SOFT, linewidth=0.8, linestyle="--")
        ax.set_ylim(0.5, 1.0)
        ax.set_title(name, loc="left", fontsize=9, color=plots.INK)
    axes[0, 0].legend(fontsize=7, ncol=2, frameon=False)
    figure.savefig(out / "usage.png", dpi=100)
    figure, axes = plots.new_figure(11, 3.2, 1, 2)
    for ax, figure_name, label in zip(axes.flat, ("mel", "stoi"), ("mel distance", "STOI"), strict=True):
        for colour, (name, values) in zip(plots.COLOURS, found.items(), strict=False):
            points = [values[f"{n}_codebooks/{figure_name}"] for n in COUNTS]
            ax.plot(COUNTS, points, color=colour, marker="o", markersize=4, linewidth=1.4, label=name)
        ax.set_title(f"{label}, by codebooks decoded", loc="left", fontsize=10, color=plots.INK)
        ax.set_xticks(COUNTS)
    axes[0, 0].legend(fontsize=8, frameon=False)
    figure.savefig(out / "codebooks.png", dpi=100)


def draw_adversarial(out: Path) -> None:
    """Plot the losses of discriminators and codec."""
    for name in ADVERSARIAL_NAMES:
        lines = read_metrics(folder(out, "runs", name) / "metrics.jsonl")
        plots.loss_curves(lines, ADVERSARIAL_CURVES).savefig(out / f"{name.replace(' ', '_')}.png", dpi=100)


def table(out: Path, found: dict[str, dict[str, float]]) -> None:
    mels = " | ".join(f"mel {n}" for n in COUNTS)
    stois = " | ".join(f"STOI {n}" for n in COUNTS)
    print(f"| variant | ABX | {mels} | {stois} | usage, least to most | non-finite steps |\n|{'---|' * 10}")
    for name, values in found.items():
        lines = read_metrics(folder(out, "runs", name) / "metrics.jsonl")
        usage = usage_of(lines)[-1][1]
        skipped = sum(line.get("skipped/steps", 0) for line in lines)
        cells = [values[f"{n}_codebooks/{figure}"] for figure in ("mel", "stoi") for n in COUNTS]
        row = [f"{100 * values['abx']:.1f} %", *(f"{x:.3f}" for x in cells), f"{min(usage):.2f} to {max(usage):.2f}"]
        print(f"| {name} | {' | '.join(row)} | {skipped:g} |")
    print(f"STOI of noise: {found['full']['noise/stoi']:.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--heldout", type=Path, help="recordings to measure distances on, instead of synthetic ones")
    arguments = parser.parse_args()
    out = arguments.out
    out.mkdir(parents=True, exist_ok=True)
    make_speech(out)
    found = {name: run(out, name, arguments.heldout or out / "heldout") for name in VARIANTS}
    draw(out, found)
    draw_adversarial(out)
    table(out, found)


if __name__ == "__main__":
    main()

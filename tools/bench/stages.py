"""Measure how many hours of recordings one core takes through each stage of preparation in an hour.

python -m tools.bench.stages
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import resource
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np

from tools.bench import support

TITLE = "Stages of data preparation"
CODEBOOKS, CARD, FRAME_RATE = 8, 2048, 12.5


class NoCodec:
    """Stands for a codec that costs nothing, so that the rest of preparation is measured."""

    sample_rate, frame_size, num_codebooks, sha256, source = 24_000, 1920, CODEBOOKS, "none", None

    def encode(self, waveforms):
        return [self._codes(len(waveform)) for waveform in waveforms]

    def encode_blocks(self, blocks):
        sizes = [block.shape for block in blocks]
        return np.stack([self._codes(sum(length for length, _ in sizes))] * sizes[0][1])

    def silence(self):
        return [0] * CODEBOOKS

    def _codes(self, samples: int) -> np.ndarray:
        frames = -(-samples // self.frame_size)
        return np.random.default_rng(samples).integers(0, CARD, (CODEBOOKS, frames), np.int32)


def processor_seconds(work: Callable[[], object]) -> float:
    """Return the processor time of all threads and ended child processes; waiting for other work does not count."""

    def now() -> float:
        gc.collect()  # which ends processes that nobody refers to any more
        used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
        return sum(usage.ru_utime + usage.ru_stime for usage in used)

    begin = now()
    work()
    return now() - begin


def bytes_per_hour(folder: Path, hours: float) -> float:
    return sum(path.stat().st_size for path in folder.glob("*.arrayrecord")) / hours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--copies", type=int, default=4, help="of the shipped dialogues, each in other voices")
    parser.add_argument("--note", default="", help="a sentence about the machine, such as other work on it")
    options = parser.parse_args()
    os.environ.setdefault("JAX_PLATFORMS", "cpu")

    import jax

    from moshijax import codec, shipped
    from moshijax.data.augmentation import UserAugmentation
    from moshijax.data.checks import CheckRules, validate
    from moshijax.data.encoder import CodecEncoder
    from moshijax.data.line import Line
    from moshijax.data.manifest import read_manifest
    from moshijax.data.prepare import PrepareConfig, prepare
    from moshijax.data.recognizer import Whisper
    from moshijax.data.synthesis import texts
    from moshijax.data.synthesis.run import synthesize
    from moshijax.data.teacher import compute_features
    from moshijax.data.transcribe import transcribe

    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        dialogues = texts.load(shipped.folder("data/dialogues"), 0, options.copies)
        spent = {"speak scripts, espeak-ng": processor_seconds(
            lambda: synthesize(dialogues, folder / "calls", seed=0, workers=1)
        )}  # fmt: skip
        manifest = read_manifest(folder / "calls")
        seconds = sum(item.duration for item in manifest.items)
        everything = UserAugmentation(
            gain=1, noise=1, room=1, clips=str(folder / "calls"), line=Line(1, 1, 1, loss=1)
        )  # fmt: skip
        spent["check: decode, resample, judge"] = processor_seconds(lambda: validate(manifest.items, CheckRules()))
        spent["prepare, all but the codec"] = processor_seconds(
            lambda: prepare(manifest, folder / "plain", NoCodec())
        )  # fmt: skip
        spent["the same, every augmentation on"] = processor_seconds(
            lambda: prepare(manifest, folder / "all", NoCodec(), PrepareConfig(augmentation=everything))
        )
        spent["phonetic features"] = processor_seconds(lambda: compute_features(manifest, folder / "features"))
        size = bytes_per_hour(folder / "plain", seconds / 3600)

        encoder = CodecEncoder(codec.configs.MIMI, codec.init(codec.configs.MIMI, jax.random.key(0)), CODEBOOKS)
        waveforms = [np.random.default_rng(n).normal(0, 0.1, 60 * 24_000).astype(np.float32) for n in range(4)]
        encoder.encode(waveforms)  # compiles
        encoding = processor_seconds(lambda: encoder.encode(waveforms))
        spent["encode, full-size Mimi, 8 codebooks"] = encoding * 2 * seconds / (4 * 60)  # of both channels

        for item in manifest.items:
            item.sidecar.unlink()
        spent["transcribe, Whisper tiny.en"] = processor_seconds(
            lambda: transcribe(manifest, Whisper("tiny.en", "en", "cpu"))
        )
    support.write_section(
        TITLE,
        "python -m tools.bench.stages",
        [
            f"{support.machine()}. {len(manifest.items)} two-channel calls, {seconds / 60:.0f} minutes in all, spoken "
            "by espeak-ng; processor time of all threads and child processes, each stage once, after the codec "
            f"has been compiled. {options.note}".strip(),
            f"A shard takes {size / 1e6:.2f} MB per hour of a call with two channels, with words and evenly drawn "
            "codes, which are the hardest to compress; as int16 alone they are "
            f"{2 * CODEBOOKS * FRAME_RATE * 7200 / 1e6:.2f} MB.",
        ],
        [
            ["stage", "hours of calls per hour and core"],
            *([stage, f"{seconds / used:,.0f}" if seconds > 10 * used else f"{seconds / used:.1f}"]
              for stage, used in spent.items()),
        ],
    )  # fmt: skip


if __name__ == "__main__":
    main()

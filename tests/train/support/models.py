"""Small real experiments for the tests of the tasks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from moshijax import data
from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.codec.balancer import Balancer
from moshijax.codec.discriminators import DiscriminatorConfig
from moshijax.codec.quantizer_training import QuantizerTraining
from moshijax.lm import DepthConfig, LMConfig, layouts
from moshijax.nn.transformer import TransformerConfig
from moshijax.train.experiment import ExperimentConfig, OptimizerConfig
from moshijax.train.tasks.codec import CodecLoss, CodecTask
from moshijax.train.tasks.lm import LMTask
from tests.train.support.grids import write_dialogues, write_text, write_tokenizer

MOSHI = dict(gating="silu", norm="rms_norm_f32")
LM = LMConfig(
    layout=layouts.dialogue(codebooks=2, acoustic_delay=1),
    card=32,
    text_card=40,
    temporal=TransformerConfig(dim=32, num_layers=2, num_heads=4, hidden_dim=64, context=10, **MOSHI),
    depth=DepthConfig(
        TransformerConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=32, positional_embedding="none", **MOSHI)
    ),
)
CODEC = MimiConfig(
    sample_rate=8000,
    seanet=SeanetConfig(dimension=16, n_filters=4, ratios=(5, 8, 8)),
    transformer=TransformerConfig(dim=16, num_layers=1, num_heads=2, hidden_dim=32, context=20, layer_scale=0.1),
    quantizer=QuantizerConfig(dim=8, bins=16, num_codebooks=3),
)


def write_lm_data(folder: Path) -> None:
    write_dialogues(folder / "grids", codebooks=2)
    write_tokenizer(folder / "tokenizer.model")
    write_text(folder / "text.txt")


def lm_experiment(folder: Path, **fields) -> ExperimentConfig:
    grids = data.GridData((str(folder / "grids"),), batch_size=8, num_frames=16)
    defaults = dict(
        task=LMTask(LM, str(folder / "tokenizer.model")),
        data=grids,
        text_data=data.TextData(str(folder / "text.txt"), batch_size=8, num_frames=16),
        text_ratio=0.25,
        optimizer=OptimizerConfig(learning_rate=1e-2, decay="constant"),
        steps=20,
        log_every=5,
        checkpoint_every=5,
    )
    return ExperimentConfig(**{**defaults, **fields})


def write_codec_data(folder: Path, count: int = 6, seconds: float = 2.0, rate: int = 8000) -> None:
    """Recordings of falling tones, and features that say how high the tone is."""
    import soundfile

    from moshijax.data import teacher
    from moshijax.data.manifest import read_manifest

    folder.mkdir(parents=True)
    time = np.arange(round(seconds * rate)) / rate
    lines = []
    for number in range(count):
        pitch = 150 + 60 * number
        tone = [0.3 * np.sin(2 * np.pi * (pitch * k * time - 20 * time**2)) for k in (1, 2)]
        name = f"call-{number}"
        soundfile.write(folder / f"{name}.wav", np.stack(tone, 1).astype(np.float32), rate, subtype="PCM_16")
        symbols = ["a", "s", "m", "i", "t", "u"]
        phonemes = [[symbols[number], [0.2, 1.0], "SPEAKER_MAIN"], [symbols[-number], [0.5, 1.5], "SPEAKER_USER"]]
        words = [["yes", [0.2, 1.0], "SPEAKER_MAIN"], ["no", [0.5, 1.5], "SPEAKER_USER"]]
        sidecar = {"alignments": words, "phonemes": phonemes}
        (folder / f"{name}.json").write_text(json.dumps(sidecar), encoding="utf-8")
        lines.append(json.dumps({"path": f"{name}.wav", "duration": seconds}) + "\n")
    (folder / "manifest.jsonl").write_text("".join(lines), encoding="utf-8")
    teacher.compute_features(read_manifest(folder / "manifest.jsonl"))


def codec_experiment(folder: Path, **fields) -> ExperimentConfig:
    from moshijax.data.teacher import PhonemeTeacher

    windows = data.AudioData(
        str(folder / "manifest.jsonl"), str(folder / "teacher"), batch_size=8, num_samples=6400, sample_rate=8000
    )
    defaults = dict(
        task=CodecTask(CODEC, PhonemeTeacher.dim, QuantizerTraining(kmeans_iterations=5)),
        data=windows,
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, decay="constant"),
        steps=20,
        log_every=5,
        checkpoint_every=5,
    )
    return ExperimentConfig(**{**defaults, **fields})


DISCRIMINATORS = DiscriminatorConfig(windows=(64, 128), filters=4, dilations=(1, 2))


def adversarial_task(**loss) -> CodecTask:
    """The codec of `codec_experiment` with the whole recipe: discriminators, balancer, weight norm, dropout."""
    from moshijax.data.teacher import PhonemeTeacher

    weights = {"mel": 0.0, "waveform": 0.0, "adversarial": 4.0, "feature": 4.0, "balancer": Balancer(), **loss}
    quantizer = QuantizerTraining(kmeans_iterations=5)
    return CodecTask(CODEC, PhonemeTeacher.dim, quantizer, CodecLoss(**weights), DISCRIMINATORS, weight_norm=True)


def adversarial_experiment(folder: Path, **fields) -> ExperimentConfig:
    own = dict(task=adversarial_task(), ema_decay=0.99, discriminator_optimizer=OptimizerConfig(1e-2, weight_decay=0.0))
    return codec_experiment(folder, **{**own, **fields})

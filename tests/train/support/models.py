"""Small real experiments for the tests of the tasks."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import numpy as np

from moshijax import data
from moshijax.codec import MimiConfig, QuantizerConfig, SeanetConfig
from moshijax.codec.balancer import Balancer
from moshijax.codec.discriminators import DiscriminatorConfig
from moshijax.codec.quantizer_training import QuantizerTraining
from moshijax.lm import DepthConfig, LMConfig, layouts
from moshijax.nn.transformer import TransformerConfig
from moshijax.train.experiment import ExperimentConfig
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.task import Batches, StepKind
from moshijax.train.tasks.codec import AudioSteps as CodecSteps
from moshijax.train.tasks.codec import CodecLoss, CodecTask
from moshijax.train.tasks.lm import AudioSteps, LMTask, TextSteps
from tests.train.support.grids import write_dialogues, write_text, write_tokenizer
from tests.train.support.small_task import with_task

NOTHING: Mapping = MappingProxyType({})
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
    write_text(folder / "text", write_tokenizer(folder / "tokenizer.model"))


def lm_experiment(folder: Path, audio: Mapping = NOTHING, text: Mapping | None = NOTHING, **fields) -> ExperimentConfig:
    """A quarter of the steps on text; `audio` and `text` change fields of these steps, None takes the text away."""
    grids = data.GridData((str(folder / "grids"),), batch_size=8, num_frames=16)
    texts = data.TextData((str(folder / "text"),), batch_size=8, num_frames=16)
    audio_steps = AudioSteps(**{"data": grids, **audio})
    text_steps = None if text is None else TextSteps(**{"data": texts, "share": 0.25, **text})
    defaults = dict(
        task=LMTask(LM, str(folder / "tokenizer.model"), audio_steps, text_steps),
        optimizer=OptimizerConfig(learning_rate=1e-2, decay="constant"),
        steps=20,
        log_every=5,
        checkpoint_every=5,
    )
    return ExperimentConfig(**{**defaults, **fields})


def with_audio(experiment: ExperimentConfig, **fields) -> ExperimentConfig:
    """The same experiment with other fields of its audio steps."""
    return with_task(experiment, audio=dataclasses.replace(experiment.task.audio, **fields))


def kind_of(experiment: ExperimentConfig, name: str) -> StepKind:
    """A kind of steps of an experiment, whether it takes any or not."""
    return next(kind for kind in experiment.task.step_kinds() if kind.name == name)


def batches_of(experiment: ExperimentConfig, name: str) -> Batches:
    """The batches of a kind of steps."""
    kind = kind_of(experiment, name)
    return experiment.task.batches(kind, kind.data, experiment.seed)


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


def codec_steps(folder: Path, **fields) -> CodecSteps:
    windows = data.AudioData(
        str(folder / "manifest.jsonl"), str(folder / "teacher"), batch_size=8, num_samples=6400, sample_rate=8000
    )
    return CodecSteps(**{"data": windows, **fields})


def codec_experiment(folder: Path, **fields) -> ExperimentConfig:
    from moshijax.data.teacher import PhonemeTeacher

    defaults = dict(
        task=CodecTask(CODEC, codec_steps(folder), PhonemeTeacher.dim, QuantizerTraining(kmeans_iterations=5)),
        optimizer=OptimizerConfig(learning_rate=3e-3, weight_decay=0.0, decay="constant"),
        steps=20,
        log_every=5,
        checkpoint_every=5,
    )
    return ExperimentConfig(**{**defaults, **fields})


DISCRIMINATORS = DiscriminatorConfig(windows=(64, 128), filters=4, dilations=(1, 2))


JUDGES = OptimizerConfig(1e-2, weight_decay=0.0)


def adversarial_task(folder: Path, judges: OptimizerConfig = JUDGES, **loss) -> CodecTask:
    """The codec of `codec_experiment` with the whole recipe: discriminators, balancer, weight norm, dropout."""
    from moshijax.data.teacher import PhonemeTeacher

    weights = {"mel": 0.0, "waveform": 0.0, "adversarial": 4.0, "feature": 4.0, "balancer": Balancer(), **loss}
    return CodecTask(
        CODEC,
        codec_steps(folder, discriminator_optimizer=judges),
        PhonemeTeacher.dim,
        QuantizerTraining(kmeans_iterations=5),
        CodecLoss(**weights),
        DISCRIMINATORS,
        weight_norm=True,
    )


def adversarial_experiment(folder: Path, **fields) -> ExperimentConfig:
    return codec_experiment(folder, **{"task": adversarial_task(folder), "ema_decay": 0.99, **fields})

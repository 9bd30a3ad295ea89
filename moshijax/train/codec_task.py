"""Training of the codec on reconstruction losses, with the semantic level distilled from a teacher's features."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp

from moshijax import codec, data
from moshijax.codec import filterbank, losses, training
from moshijax.codec.quantizer_training import QuantizerTraining
from moshijax.errors import ConfigError
from moshijax.train.task import LossParts, Source

if TYPE_CHECKING:
    from moshijax.train.experiment import ExperimentConfig


@dataclass(frozen=True)
class CodecLoss:
    """Weights of the losses of a codec without discriminators.

    Attributes:
      mel: multi-scale mel spectrogram distance, at `mel_windows` samples; `mel_floor` is added before the logarithm
        (magnitudes of a window of energy 1: noise of amplitude s has magnitude s).
      waveform: mean absolute difference of samples.
      commitment: distance of latents from their codes.
      distillation: cosine distance of the semantic level from the teacher's features.
      latent_distillation: the same of the semantic projection before it is quantised (ours: without the noise of a
        codebook an encoder learns to hear in fewer steps).
    """

    mel: float = 2.0
    mel_windows: tuple[int, ...] = losses.WINDOWS
    mel_floor: float = 1e-5
    waveform: float = 1.0
    commitment: float = 1.0
    distillation: float = 1.0
    latent_distillation: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mel", "waveform", "commitment", "distillation", "latent_distillation"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"loss weight {name} is {getattr(self, name)}; it must be 0 or more")
        if not self.mel_floor > 0:
            raise ConfigError(f"mel_floor is {self.mel_floor}; it must be more than 0")


@dataclass(frozen=True)
class CodecTask:
    """Training of `model` on windows of speech.

    Attributes:
      teacher_dim: width of the teacher's features; None: no distillation.
      quantizer: how codebooks learn.
      filterbank: start as a filterbank (`moshijax.codec.filterbank`), whose first part stays as it is.
    """

    model: codec.MimiConfig
    teacher_dim: int | None = None
    quantizer: QuantizerTraining = QuantizerTraining()
    loss: CodecLoss = CodecLoss()
    filterbank: bool = False

    kind: ClassVar[str] = "codec"

    def model_config(self) -> codec.MimiConfig:
        return self.model

    def sources(self, experiment: ExperimentConfig) -> dict[str, Source]:
        if experiment.text_ratio:
            raise ConfigError(f"text_ratio is {experiment.text_ratio}, but a codec has no text steps; set it to 0")
        found = {"audio": experiment.data} | ({"eval": experiment.eval_data} if experiment.eval_data else {})
        for name, config in found.items():
            if config.num_samples % self.model.frame_size:
                raise ConfigError(
                    f"{name} data: num_samples {config.num_samples} is not a multiple of the frame size "
                    f"{self.model.frame_size}"
                )
            if config.sample_rate != self.model.sample_rate:
                raise ConfigError(
                    f"{name} data: sample_rate is {config.sample_rate}, the codec's is {self.model.sample_rate}"
                )
        sources = {name: data.audio_batches(config, experiment.seed) for name, config in found.items()}
        for name, source in sources.items():
            teacher = source.batch(0).get("teacher")
            width = None if teacher is None else teacher.shape[-1]
            if width != self.teacher_dim:
                raise ConfigError(f"{name} data: features of width {width}, but teacher_dim is {self.teacher_dim}")
        return sources

    def save_assets(self, experiment: ExperimentConfig, run_dir: Path) -> None:
        pass

    def amounts(self, program: str, batch: Mapping[str, Any]) -> dict[str, float]:
        samples = batch["audio"].size
        return {"frames": samples / self.model.frame_size, "audio_seconds": samples / self.model.sample_rate}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        variables = training.init(self.model, key, self.teacher_dim)
        params = filterbank.apply(self.model, variables["params"]) if self.filterbank else variables["params"]
        return params, variables["codebooks"]

    def owns(self, program: str, path: str) -> bool:
        return True

    def denominators(self, program: str, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        return {"rows": jnp.float32(batch["audio"].shape[0])}

    def loss_parts(
        self, program: str, params: Any, model_state: Any, batch: Mapping[str, jax.Array], denominators: Any, key: Any
    ) -> LossParts:
        params = filterbank.freeze(self.model, params) if self.filterbank else params
        variables, audio = {"params": params, "codebooks": model_state}, batch["audio"]
        total_rows = denominators["rows"].astype(jnp.int32)
        settings = self.quantizer
        out = training.forward(self.model, settings, variables, audio, key, batch["row"], total_rows)
        rows = {"commitment": out.commitment}
        # Without a reconstruction loss nothing of the decoder is compiled: such steps are several times cheaper.
        if self.loss.mel > 0:
            rate, windows, floor = self.model.sample_rate, self.loss.mel_windows, self.loss.mel_floor
            rows["mel"] = losses.multi_scale_mel(out.reconstruction, audio, rate, windows, floor=floor)
        if self.loss.waveform > 0:
            rows["waveform"] = losses.waveform_l1(out.reconstruction, audio)
        if self.teacher_dim is not None:
            target = losses.pool_teacher(batch["teacher"], out.semantic.shape[1])
            for name, semantic in (("distillation", out.semantic), ("latent_distillation", out.semantic_latent)):
                if getattr(self.loss, name) > 0:
                    rows[name] = losses.cosine_distance(training.teacher_estimate(variables, semantic), target)
        count = jnp.float32(audio.shape[0])
        sums = {f"{name}/loss": (value.sum(), count) for name, value in rows.items()}
        loss = sum(getattr(self.loss, name) * value.sum() for name, value in rows.items()) / denominators["rows"]
        return LossParts(loss, sums, out.statistics)

    def update_model_state(self, model_state: Any, statistics: Any, key: Any, step: Any) -> tuple[Any, dict[str, Any]]:
        new, values = training.update_codebooks(self.quantizer, model_state, statistics, key, step)
        sums = {}
        for q in range(self.model.num_codebooks):
            sums[f"codebook_{q}/usage_entropy"] = (values["usage_entropy"][q], 1.0)
            sums[f"codebook_{q}/replaced"] = (values["replaced"][q], 1.0)
        return new, sums

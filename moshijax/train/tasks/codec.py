"""Training of the codec: reconstruction and adversarial losses, and the semantic level distilled from a teacher."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from moshijax import codec
from moshijax.codec import balancer, discriminators, filterbank, losses, training
from moshijax.codec.balancer import Balancer
from moshijax.codec.discriminators import DiscriminatorConfig
from moshijax.codec.quantizer_training import QuantizerTraining
from moshijax.data.teacher import RATE
from moshijax.data.windows import AudioData, audio_batches
from moshijax.errors import ConfigError
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.task import Batch, Batches, LossParts, StepKind, Sums, Task, Update

# From the decoder's output [B, N] to named losses [B].
OutputLoss = Callable[[jax.Array], dict[str, jax.Array]]

AUDIO = "audio"  # the kind of steps
DISCRIMINATOR, GENERATOR = "discriminator", "generator"  # its updates


@dataclass(frozen=True)
class CodecLoss:
    """Weights of the codec's losses.

    Attributes:
      mel: multi-scale mel spectrogram distance, at `mel_windows` samples; `mel_floor` is added before the logarithm
        (magnitudes of a window of energy 1: noise of amplitude s has magnitude s).
      waveform: mean absolute difference of samples.
      adversarial: minus what the discriminators say.
      feature: distance of the discriminators' features.
      commitment: distance of latents from their codes.
      distillation: cosine distance of the semantic level from the teacher's features.
      latent_distillation: the same of the semantic projection before it is quantised (ours: without the noise of a
        codebook an encoder learns to hear in fewer steps).
      balancer: makes the first four weights shares of the gradient at the decoder's output; None: plain factors.
    """

    mel: float = 2.0
    mel_windows: tuple[int, ...] = losses.WINDOWS
    mel_floor: float = 1e-5
    waveform: float = 1.0
    adversarial: float = 0.0
    feature: float = 0.0
    commitment: float = 1.0
    distillation: float = 1.0
    latent_distillation: float = 0.0
    balancer: Balancer | None = None

    def __post_init__(self) -> None:
        for name in (*self.OUTPUT, "commitment", "distillation", "latent_distillation"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"loss weight {name} is {getattr(self, name)}; it must be 0 or more")
        if not self.mel_floor > 0:
            raise ConfigError(f"mel_floor is {self.mel_floor}; it must be more than 0")
        if self.balancer is not None and not self.output_weights:
            raise ConfigError(f"a balancer needs a loss to balance; set one of {', '.join(self.OUTPUT)}")

    # Losses of the decoder's output, which a balancer weighs.
    OUTPUT: ClassVar[tuple[str, ...]] = ("mel", "waveform", "adversarial", "feature")

    @property
    def output_weights(self) -> dict[str, float]:
        """The weights above 0 of losses of the decoder's output."""
        return {name: getattr(self, name) for name in self.OUTPUT if getattr(self, name) > 0}


@dataclass(frozen=True)
class AudioSteps:
    """Steps on windows of recordings.

    Attributes:
      eval_data: held-out windows; None: none.
      optimizer: of the codec; None: the run's.
      discriminator_optimizer: of the discriminators; None: the run's.
    """

    data: AudioData
    eval_data: AudioData | None = None
    optimizer: OptimizerConfig | None = None
    discriminator_optimizer: OptimizerConfig | None = None


@dataclass(frozen=True)
class CodecTask(Task):
    """Training of `model` on windows of speech.

    Attributes:
      model: config of the codec.
      audio: its steps, with data and optimisers.
      teacher_dim: width of the teacher's features; None: no distillation.
      quantizer: how codebooks learn.
      loss: weights of the losses.
      discriminators: they learn on every step before the codec does; None: no adversarial losses.
      weight_norm: normalise the weights of both SEANets in training; what is saved for others is plain.
      filterbank: start as a filterbank (`moshijax.codec.filterbank`), whose first part stays as it is.
    """

    model: codec.MimiConfig
    audio: AudioSteps
    teacher_dim: int | None = None
    quantizer: QuantizerTraining = QuantizerTraining()
    loss: CodecLoss = CodecLoss()
    discriminators: DiscriminatorConfig | None = None
    weight_norm: bool = False
    filterbank: bool = False

    kind: ClassVar[str] = "codec"
    parts: ClassVar[tuple[str, ...]] = ("encoder", "quantizer", "decoder")

    def __post_init__(self) -> None:
        judged = self.loss.adversarial > 0 or self.loss.feature > 0
        if judged != (self.discriminators is not None):
            raise ConfigError(
                "discriminators need a loss weight adversarial or feature above 0, and these need discriminators; "
                f"now adversarial is {self.loss.adversarial}, feature {self.loss.feature}, discriminators "
                f"{'set' if self.discriminators else 'None'}"
            )

    def model_config(self) -> codec.MimiConfig:
        return self.model

    def step_kinds(self) -> tuple[StepKind, ...]:
        steps, updates = self.audio, (Update(GENERATOR, self.audio.optimizer),)
        if self.discriminators is not None:
            updates = (Update(DISCRIMINATOR, steps.discriminator_optimizer), *updates)
        return (StepKind(AUDIO, updates, steps.data, eval_data=steps.eval_data),)

    def batches(self, kind: StepKind, data_config: AudioData, seed: int) -> Batches:
        name = "eval_data" if data_config is kind.eval_data else "data"
        longest = max((*(self.discriminators.windows if self.discriminators else ()), *self.loss.mel_windows))
        if data_config.num_samples % self.model.frame_size:
            raise ConfigError(
                f"{name}: num_samples {data_config.num_samples} is not a multiple of the frame size "
                f"{self.model.frame_size}; choose one"
            )
        if data_config.num_samples < longest:
            raise ConfigError(
                f"{name}: num_samples {data_config.num_samples} is less than the longest window {longest} of a loss; "
                "take longer windows of audio, or shorter ones of the losses"
            )
        if data_config.sample_rate != self.model.sample_rate:
            raise ConfigError(
                f"{name}: sample_rate is {data_config.sample_rate}, the codec's is {self.model.sample_rate}; make them "
                "equal"
            )
        found = audio_batches(data_config, seed)
        teacher = found.batch(0).get("teacher")
        width = None if teacher is None else teacher.shape[-1]
        if width != self.teacher_dim:
            raise ConfigError(
                f"{name}: features of width {width}, but teacher_dim is {self.teacher_dim}: let its `teacher` be a "
                "folder that `moshijax data teacher` made for these recordings, of that width"
            )
        return found

    def batch_shapes(self, kind: StepKind, data_config: AudioData) -> dict[str, jax.ShapeDtypeStruct]:
        shapes = {"audio": (data_config.batch_size, data_config.num_samples)}
        if self.teacher_dim is not None:
            frames = round(data_config.num_samples * RATE / data_config.sample_rate)
            shapes["teacher"] = (data_config.batch_size, frames, self.teacher_dim)
        return {key: jax.ShapeDtypeStruct(shape, jnp.float32) for key, shape in shapes.items()}

    def amounts(self, kind: StepKind, batch: Batch) -> dict[str, float]:
        samples = batch["audio"].size
        return {"frames": samples / self.model.frame_size, "audio_seconds": samples / self.model.sample_rate}

    def init(self, key: jax.Array) -> tuple[Any, Any]:
        variables = training.init(self.model, key, self.teacher_dim)
        params, state = variables["params"], variables["codebooks"]
        if self.filterbank:
            params = filterbank.apply(self.model, params)
        params = self.training_form(params)
        if self.discriminators is not None:
            params = {**params, "discriminators": discriminators.init(self.discriminators, jax.random.fold_in(key, 1))}
        if self.loss.balancer is not None:
            state = {**state, "balancer": balancer.init(tuple(self.loss.output_weights))}
        return params, state

    def training_form(self, params: Any) -> Any:
        plain = training.plain_weights(params)
        return training.normalise_weights(plain) if self.weight_norm else plain

    def owns(self, update: str, path: str) -> bool:
        return path.startswith("discriminators/") == (update == DISCRIMINATOR)

    def training_only(self, path: str) -> bool:
        return path.startswith(("discriminators/", "balancer/"))

    def denominators(self, update: str, batch: Batch) -> dict[str, jax.Array]:
        return {"rows": jnp.float32(batch["audio"].shape[0])}

    def loss_parts(
        self,
        update: str,
        params: Any,
        model_state: Any,
        batch: Batch,
        denominators: Mapping[str, jax.Array],
        key: jax.Array,
    ) -> LossParts:
        params = filterbank.freeze(self.model, params) if self.filterbank else params
        variables, audio = {"params": params, "codebooks": model_state}, batch["audio"]
        rows_of_all = denominators["rows"]
        total_rows = rows_of_all.astype(jnp.int32)
        out = training.forward(self.model, self.quantizer, variables, audio, key, batch["row"], total_rows)
        if update == DISCRIMINATOR:
            return self._discriminator_parts(params["discriminators"], audio, out.reconstruction, rows_of_all)
        rows = self._latent_losses(variables, batch, out.bottleneck)
        statistics: dict[str, Any] = dict(out.bottleneck.statistics)
        loss = sum(getattr(self.loss, name) * value.sum() for name, value in rows.items())
        fixed = jax.lax.stop_gradient(variables)

        def at_latent(latent: jax.Array) -> dict[str, jax.Array]:
            again = training.quantize(self.model, self.quantizer, fixed, latent, key, batch["row"], total_rows)
            return self._latent_losses(fixed, batch, again)

        slopes = balancer.slopes(at_latent, out.latent)[1]
        norms = {name: balancer.row_norms(slope) for name, slope in slopes.items()}
        functions, weights = self._output_losses(params, audio), self.loss.output_weights
        # Without a loss of its output nothing of the decoder is compiled: such steps are several times cheaper.
        if functions:
            state = model_state.get("balancer")
            balanced = balancer.balance(self.loss.balancer, weights, state, functions, out.reconstruction)
            if state is not None:
                statistics["balancer"] = {name: norm.sum() / rows_of_all for name, norm in balanced.norms.items()}
            # Its value is that of the weighted losses, its gradient the balanced one.
            value = sum(weights[name] * balanced.rows[name].sum() for name in weights)
            pull = jnp.sum(balanced.gradient * out.reconstruction)
            loss += jax.lax.stop_gradient(value - pull) + pull
            rows, norms = rows | balanced.rows, norms | balanced.norms
        count = jnp.float32(audio.shape[0])
        sums = _row_sums(rows, count) | {f"{name}/grad_norm": (norm.sum(), count) for name, norm in norms.items()}
        return LossParts(loss / rows_of_all, sums, statistics)

    def held_out_parts(self, kind: StepKind, params: Any, model_state: Any, batch: Batch, key: jax.Array) -> LossParts:
        """Return the losses of the codec as it will be used: quantised with all levels, without discriminators."""
        params = filterbank.freeze(self.model, params) if self.filterbank else params
        variables, audio = {"params": params, "codebooks": model_state}, batch["audio"]
        settings = dataclasses.replace(self.quantizer, quantization_rate=1.0, dropout=False)
        out = training.forward(self.model, settings, variables, audio, key, batch["row"], audio.shape[0])
        rows = self._latent_losses(variables, batch, out.bottleneck)
        if self.loss.output_weights:
            for distance in (self._mel, self._waveform):
                rows |= distance(audio)(out.reconstruction)
        loss = sum(getattr(self.loss, name) * value.sum() for name, value in rows.items())
        count = jnp.float32(audio.shape[0])
        return LossParts(loss / count, _row_sums(rows, count), {})

    def _latent_losses(
        self, variables: Any, batch: Mapping[str, jax.Array], bottleneck: training.Bottleneck
    ) -> dict[str, jax.Array]:
        """Return the losses that do not reach the decoder's output, per row; commitment is always measured."""
        rows = {"commitment": bottleneck.commitment}
        if self.teacher_dim is not None:
            target = losses.pool_teacher(batch["teacher"], bottleneck.semantic.shape[1])
            sides = {"distillation": bottleneck.semantic, "latent_distillation": bottleneck.semantic_latent}
            for name, semantic in sides.items():
                if getattr(self.loss, name) > 0:
                    rows[name] = losses.cosine_distance(training.teacher_estimate(variables, semantic), target)
        return rows

    def _mel(self, audio: jax.Array) -> OutputLoss:
        rate, windows, floor = self.model.sample_rate, self.loss.mel_windows, self.loss.mel_floor
        return lambda y: {"mel": losses.multi_scale_mel(y, audio, rate, windows, floor=floor)}

    def _waveform(self, audio: jax.Array) -> OutputLoss:
        return lambda y: {"waveform": losses.waveform_l1(y, audio)}

    def _output_losses(self, params: Any, audio: jax.Array) -> list[OutputLoss]:
        """Return the losses of the decoder's output that have a weight."""
        weights = self.loss.output_weights
        functions: list[OutputLoss] = []
        if "mel" in weights:
            functions.append(self._mel(audio))
        if "waveform" in weights:
            functions.append(self._waveform(audio))
        if self.discriminators is not None:

            def judged(y: jax.Array) -> dict[str, jax.Array]:
                found = discriminators.generator_losses(self.discriminators, params["discriminators"], audio, y)
                return {name: value for name, value in found.items() if name in weights}

            functions.append(judged)
        return functions

    def _discriminator_parts(
        self, params: Any, audio: jax.Array, reconstruction: jax.Array, rows_of_all: jax.Array
    ) -> LossParts:
        found = discriminators.discriminator_loss(self.discriminators, params, audio, reconstruction)
        count = jnp.float32(audio.shape[0])
        right = {f"right_on_{name}": (found[name].sum(), count) for name in ("real", "fake")}
        return LossParts(found["loss"].sum() / rows_of_all, right, {})

    def update_model_state(
        self, model_state: Any, statistics: Any, key: jax.Array, step: jax.Array
    ) -> tuple[Any, Sums]:
        new, values = training.update_codebooks(self.quantizer, model_state, statistics, key, step)
        if self.loss.balancer is not None:
            means = statistics["balancer"]
            new = {**new, "balancer": balancer.update(self.loss.balancer, model_state["balancer"], means)}
        sums = {}
        for q in range(self.model.num_codebooks):
            sums[f"codebook_{q}/usage_entropy"] = (values["usage_entropy"][q], 1.0)
            sums[f"codebook_{q}/replaced"] = (values["replaced"][q], 1.0)
        return new, sums


def _row_sums(rows: Mapping[str, jax.Array], count: jax.Array) -> Sums:
    return {f"{name}/loss": (value.sum(), count) for name, value in rows.items()}

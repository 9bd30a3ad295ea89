"""What one training run is: frozen dataclasses that a recipe fills and a run directory records."""

from __future__ import annotations

import dataclasses
import math
import re
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

from moshijax.errors import ConfigError

# Fields that change neither the numbers of a run nor what it trains on, so that a resumed run may change them.
FREE_ON_RESUME = (
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "eval_every",
    "eval_batches",
    "report_every",
    "profile_steps",
    "wandb",
    "mesh",
)


def require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters whose path ("temporal/layers/attention/in_proj/kernel") contains a match of `pattern`."""

    name: str
    pattern: str
    learning_rate_scale: float = 1.0
    weight_decay: float | None = None  # None: the optimiser's
    frozen: bool = False

    def __post_init__(self) -> None:
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ConfigError(
                f"pattern {self.pattern!r} of group {self.name!r} is no regular expression: {error}"
            ) from None


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW with decoupled weight decay, clipping by the global norm and one learning-rate schedule.

    The rate rises linearly over `warmup_steps`, stays at `learning_rate` until the fraction `decay_start` of all
    steps, then falls to `final_scale * learning_rate` at the last step. It reads the global step of the run, not the
    count of this optimiser's updates. A parameter belongs to the first of `groups` that matches its path, else to the
    unnamed rest.

    `moments_dtype`: what the two moments are kept in between steps; they are computed in float32. bfloat16 halves them
    and has 8 bits of precision: a `b2` above 0.99 would change the second moment by less than that and stop it.
    `moments_memory`: "host" keeps them in pinned memory of the host between steps, so that those of a kind of step that
    is not running take no memory of the device; each step of their own kind moves them there and back.
    """

    learning_rate: float = 1e-3
    warmup_steps: int = 0
    decay: str = "cosine"  # cosine | linear | constant
    decay_start: float = 0.0
    final_scale: float = 0.0
    b1: float = 0.9
    b2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip_norm: float | None = 1.0
    groups: tuple[ParameterGroup, ...] = ()
    moments_dtype: str = "float32"  # float32 | bfloat16
    moments_memory: str = "device"  # device | host

    def __post_init__(self) -> None:
        require(
            self.moments_dtype in ("float32", "bfloat16"),
            f"moments_dtype is {self.moments_dtype!r}, not float32 or bfloat16",
        )
        require(
            self.moments_dtype == "float32" or self.b2 <= 0.99,
            f"moments_dtype = 'bfloat16' with b2 = {self.b2}: changes of less than 1 % are lost in bfloat16; use a "
            "b2 up to 0.99, or float32",
        )
        require(
            self.moments_memory in ("device", "host"), f"moments_memory is {self.moments_memory!r}, not device or host"
        )
        require(
            self.decay in ("cosine", "linear", "constant"), f"decay is {self.decay!r}, not cosine, linear or constant"
        )
        require(self.learning_rate >= 0, f"learning_rate is {self.learning_rate}; it must not be negative")
        require(self.warmup_steps >= 0, f"warmup_steps is {self.warmup_steps}; it must not be negative")
        require(
            0 <= self.decay_start < 1, f"decay_start is {self.decay_start}, a fraction of the steps from 0 to below 1"
        )
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"{name} is {getattr(self, name)}; it must be from 0 to below 1")
        require(
            self.clip_norm is None or self.clip_norm > 0, f"clip_norm is {self.clip_norm}; use None for no clipping"
        )
        names = [group.name for group in self.groups]
        require(len(set(names)) == len(names), f"parameter groups {names} have a name twice; give each its own")


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1 and takes the rest. Arrays of the batch lie over data x fsdp."""

    data: int = -1
    fsdp: int = 1
    tensor: int = 1

    def __post_init__(self) -> None:
        sizes = dataclasses.astuple(self)
        require(
            all(size == -1 or size >= 1 for size in sizes), f"mesh sizes {sizes} must be positive, or -1 for the rest"
        )
        require(sizes.count(-1) <= 1, f"mesh sizes {sizes} have more than one -1; only one axis can take the rest")

    def shape(self, devices: int) -> dict[str, int]:
        """Axis name -> size, for that many devices.

        Raises:
          ConfigError: the sizes do not multiply to `devices`.
        """
        sizes = dataclasses.asdict(self)
        known = math.prod(size for size in sizes.values() if size != -1)
        if -1 in sizes.values():
            require(devices % known == 0, f"mesh {sizes} leaves {devices} devices / {known} for the axis of size -1")
            sizes = {name: devices // known if size == -1 else size for name, size in sizes.items()}
        total = math.prod(sizes.values())
        require(total == devices, f"mesh {sizes} needs {total} devices, but there are {devices}; change the mesh sizes")
        return sizes


@dataclass(frozen=True)
class WandbConfig:
    """Where the numbers of a run go in Weights & Biases; `mode` is online, offline or disabled. The run there is named
    `name`, or as the run directory."""

    project: str
    entity: str | None = None
    name: str | None = None
    group: str | None = None
    tags: tuple[str, ...] = ()
    mode: str = "online"

    def __post_init__(self) -> None:
        require(
            self.mode in ("online", "offline", "disabled"),
            f"wandb mode is {self.mode!r}, not online, offline or disabled",
        )


@dataclass(frozen=True)
class ExperimentConfig:
    """One training run.

    Attributes:
      task: what is trained and on which losses (`moshijax.train.tasks.lm.LMTask`, `codec_task.CodecTask`).
      data: batches of the audio steps (a config of `moshijax.data`).
      text_data: batches of the text steps; needed when `text_ratio` is above 0.
      text_ratio: share of text steps; step n is one iff floor((n+1) r) > floor(n r).
      optimizer, text_optimizer, discriminator_optimizer: each kind of update has its own optimiser state; the last two
        are like the first where they are None.
      steps: length of the run, text steps included.
      seed: of the initial parameters, the order of the data and the randomness inside the steps.
      ema_decay: of the running average of the parameters that evaluation and export use; None: no average.
      microbatches: parts of a batch that go through the model one after the other.
      eval_data, eval_text_data: held-out batches of the audio steps' kind, and of text alone, whatever the steps of the
        run are: a text model is measured by the second, and what speech makes a model forget of its text too.
      init_from: a run, or published or imported weights, whose parameters are the first of this run.
      init_transforms: names of `moshijax.train.run.init_from.TRANSFORMS`, in order, that make this model's parameters
        of those; without any it must be the same model.
      report_every: the page `report.html` of a run is written anew after so many steps.
      profile_steps: numbers of the steps that are traced into `profile/`.
      wandb: also log to Weights & Biases (extra `wandb`).
    """

    task: Any
    data: Any
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 1000
    seed: int = 0
    text_data: Any = None
    text_ratio: float = 0.0
    text_optimizer: OptimizerConfig | None = None
    discriminator_optimizer: OptimizerConfig | None = None
    ema_decay: float | None = None
    microbatches: int = 1
    mesh: MeshConfig = MeshConfig()
    eval_data: Any = None
    eval_text_data: Any = None
    eval_batches: int = 8
    eval_every: int = 1000
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    init_from: str | None = None
    init_transforms: tuple[str, ...] = ()
    report_every: int = 500
    profile_steps: tuple[int, ...] = ()
    wandb: WandbConfig | None = None

    def __post_init__(self) -> None:
        for name in (
            "steps",
            "microbatches",
            "log_every",
            "checkpoint_every",
            "eval_every",
            "eval_batches",
            "keep_checkpoints",
            "report_every",
        ):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; it must be at least 1")
        require(0 <= self.text_ratio <= 1, f"text_ratio is {self.text_ratio}; it is a share from 0 to 1")
        if self.text_ratio > 0:
            require(
                self.text_data is not None,
                f"text_ratio is {self.text_ratio} but text_data is not set; set it or text_ratio = 0",
            )
        require(
            not self.init_transforms or self.init_from is not None,
            f"init_transforms {self.init_transforms} have no parameters to work on; set init_from to a run or weights",
        )
        if self.ema_decay is not None:
            require(0 < self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must be between 0 and 1, or None")

    @property
    def programs(self) -> tuple[str, ...]:
        """The kinds of steps that the run takes."""
        return (("audio",) if self.text_ratio < 1 else ()) + (("text",) if self.text_ratio > 0 else ())

    def optimizer_of(self, update: str) -> OptimizerConfig:
        """Optimiser config of an update (`moshijax.train.task.Task.updates`)."""
        own = {"text": self.text_optimizer, "discriminator": self.discriminator_optimizer}
        return own.get(update) or self.optimizer


def place_of_step(step: int, text_ratio: float) -> tuple[str, int]:
    """Program ("audio" or "text") of a global step and the index of its batch in that program's data.

    Exact for any decimal ratio, and a function of the step alone: a resumed run needs no history.
    """
    ratio = Fraction(str(text_ratio))
    before = math.floor(step * ratio)
    if math.floor((step + 1) * ratio) > before:
        return "text", before
    return "audio", step - before

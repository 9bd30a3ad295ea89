"""What one training run is: frozen dataclasses that a recipe fills and a run directory records."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction

from moshijax.errors import require
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.task import StepKind, Task, Update

# Fields that change what a run trains on not at all, and its numbers by rounding at most, so that a resumed run may
# change them.
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
    "deterministic",
)


@dataclass(frozen=True)
class MeshConfig:
    """Devices per mesh axis; one axis may be -1 and takes the rest. Batches are spread over data x fsdp.

    Attributes:
      data: copies of the parameters.
      fsdp: devices over which the parameters are spread; a layer gathers its own where it runs.
      tensor: devices over which heads and hidden units are spread.
    """

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
        """Return axis name -> size, for that many devices.

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
    """Where the numbers of a run go in Weights & Biases.

    Attributes:
      project: of the run there.
      entity: user or team that owns the project; None: the default one.
      name: of the run there; None: the name of the run directory.
      group: of runs that belong together.
      tags: of the run there.
      mode: "online", "offline" or "disabled".
    """

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
class Speaking:
    """Held-out calls that a model which listens and speaks answers at every evaluation (`moshijax.eval.speaking`).

    Attributes:
      calls: manifest or folder of recordings, the user in the right channel; the `meta` of their sidecars has
        `question` and `answer`, empty where none is right.
      codec: the codec of the data, as `moshijax.weights.load_mimi` takes it.
      batch: calls at once.
    """

    calls: str
    codec: str
    batch: int = 64

    def __post_init__(self) -> None:
        require(self.batch >= 1, f"speaking.batch is {self.batch}; it must be at least 1")


@dataclass(frozen=True)
class ExperimentConfig:
    """One training run.

    Attributes:
      task: what is trained, on which data and losses (`moshijax.train.tasks`).
      optimizer: of every update that has none of its own; each update has a state of its own.
      steps: length of the run, steps of all kinds together.
      seed: of the initial parameters, the order of the data and the randomness inside the steps.
      ema_decay: of the running average of the parameters that evaluation and export use; None: no average.
      microbatches: parts of a batch that go through the model one after the other.
      mesh: how the devices are divided.
      deterministic: on GPUs, compile programs that give the same bits every time, which costs speed; without it a run
        that resumes there is one that never stopped up to rounding. CPUs always do.
      eval_batches: number of held-out batches, of each kind of steps that has any.
      eval_every: steps between evaluations; there is one after the last step too.
      log_every: steps between log lines.
      checkpoint_every: steps between checkpoints; there is one after the last step too.
      keep_checkpoints: number of the newest checkpoints that are kept.
      speaking: calls that the model answers at every evaluation; None: none.
      keep_best: metric of the evaluations, such as 'calls/right', whose best checkpoint is kept beside the newest, and
        is the run's model for every command; None: the newest is.
      best_is: 'max' or 'min', what is best of `keep_best`. Of equal ones the first is.
      init_from: a run, or published or imported weights, whose parameters are the first of this run.
      init_transforms: names of `moshijax.lm.transforms.TRANSFORMS`, in order, that make this model's parameters of
        those; without any it must be the same model.
      report_every: steps between two versions of the page `report.html` of a run.
      profile_steps: numbers of the steps that are traced into `profile/`.
      wandb: also log to Weights & Biases (extra `wandb`).
    """

    task: Task
    optimizer: OptimizerConfig = OptimizerConfig()
    steps: int = 1000
    seed: int = 0
    ema_decay: float | None = None
    microbatches: int = 1
    mesh: MeshConfig = MeshConfig()
    deterministic: bool = False
    eval_batches: int = 8
    eval_every: int = 1000
    log_every: int = 20
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    speaking: Speaking | None = None
    keep_best: str | None = None
    best_is: str = "max"
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
        require(
            not self.init_transforms or self.init_from is not None,
            f"init_transforms {self.init_transforms} have no parameters to work on; set init_from to a run or weights",
        )
        require(self.best_is in ("max", "min"), f"best_is is {self.best_is!r}; it must be 'max' or 'min'")
        if self.keep_best is not None:
            spoken = self.keep_best.startswith("calls/")
            require(
                self.speaking is not None or bool(self.held_out and not spoken),
                f"keep_best is {self.keep_best!r}, but nothing measures it; set "
                f"{'speaking' if spoken else 'eval_data of the task'}, or keep_best = None",
            )
        if self.ema_decay is not None:
            require(0 < self.ema_decay < 1, f"ema_decay is {self.ema_decay}; it must be between 0 and 1, or None")
        for update in (update for kind in self.step_kinds for update in kind.updates):
            warmup = self.optimizer_of(update).warmup_steps
            require(
                warmup <= self.steps,
                f"warmup_steps is {warmup} for the update {update.name!r}, but steps is {self.steps}: its rate would "
                "never reach learning_rate; shorten the warmup or take more steps",
            )

    @property
    def step_kinds(self) -> tuple[StepKind, ...]:
        """The kinds of steps that the run takes."""
        return tuple(kind for kind in self.task.step_kinds() if kind.share > 0)

    @property
    def held_out(self) -> tuple[StepKind, ...]:
        """The kinds that have held-out batches, whether the run takes such steps or not."""
        return tuple(kind for kind in self.task.step_kinds() if kind.eval_data is not None)

    def optimizer_of(self, update: Update) -> OptimizerConfig:
        """Return the config of an update's optimiser."""
        return update.optimizer or self.optimizer


def place_of_step(step: int, shares: Mapping[str, Fraction]) -> tuple[str, int]:
    """Return the kind of a global step and the number of its batch in that kind's data.

    Exact for any ratio, and a function of the step alone: a resumed run needs no history. A kind with the share r of
    the steps takes step n if and only if floor((n+1) r) > floor(n r), and its batch is floor(n r). With more than two
    kinds each takes its share of the steps that the ones before it leave.

    Args:
      step: the global step, from 0.
      shares: kind -> its share; they add up to 1, and the first one takes what the others leave.
    """
    first, *others = shares
    index, left = step, Fraction(1)
    for name in others:
        ratio = shares[name] / left if left else Fraction(0)
        before = math.floor(index * ratio)
        if math.floor((index + 1) * ratio) > before:
            return name, before
        index, left = index - before, left - shares[name]
    return first, index

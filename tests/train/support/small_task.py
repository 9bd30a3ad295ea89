"""A task of two matrices and a counter, to test the trainer without a speech model."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from fractions import Fraction

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from moshijax.train.experiment import ExperimentConfig
from moshijax.train.optimizer import OptimizerConfig
from moshijax.train.task import LossParts, StepKind, Task, Update


@dataclass(frozen=True)
class SmallModel:
    width: int = 16
    hidden: int = 32


@dataclass(frozen=True)
class SmallData:
    rows: int = 8
    seed: int = 0
    bad_from: int = -1  # batches bad_from, bad_from + 1, ... below bad_to hold a NaN
    bad_to: int = -1
    skipped = {}
    content, items, files = "random numbers", 64, {}

    @property
    def identity(self) -> dict[str, str]:
        return {"small": str(self.seed)}

    def batch(self, n: int, rows: slice = slice(None)) -> dict[str, np.ndarray]:
        random = np.random.default_rng([self.seed, n])
        x = random.standard_normal((self.rows, 16), np.float32)
        if self.bad_from <= n < self.bad_to:
            x[0, 0] = np.nan
        weight = (random.random((self.rows, 16)) < 0.7).astype(np.float32)
        whole = {"x": x, "y": np.roll(x, 1, axis=1) * 2, "weight": weight}
        return {name: array[rows] for name, array in whole.items()}


@dataclass(frozen=True)
class SmallTask(Task):
    model: SmallModel = SmallModel()
    data: SmallData = SmallData()
    eval_data: SmallData | None = None
    text_data: SmallData | None = None
    text_share: float = 0.0
    text_optimizer: OptimizerConfig | None = None
    kind = "small"

    def model_config(self):
        return self.model

    def step_kinds(self):
        share = Fraction(str(self.text_share))
        audio = StepKind("audio", (Update("audio"),), self.data, 1 - share, eval_data=self.eval_data)
        text = StepKind("text", (Update("text", self.text_optimizer),), self.text_data, share, suffix="_text")
        return audio, text

    def batches(self, kind, data, seed):
        return data

    def batch_shapes(self, kind, data):
        return {key: jax.ShapeDtypeStruct(x.shape, x.dtype) for key, x in data.batch(0).items()}

    def amounts(self, kind, batch):
        return {"frames": float(batch["x"].size)}

    def init(self, key):
        one, two = jax.random.split(key)
        width, hidden = self.model.width, self.model.hidden
        params = {
            "first": {"kernel": nn.LogicallyPartitioned(jax.random.normal(one, (hidden, width)) / 4, ("mlp", "embed"))},
            "second": {
                "kernel": nn.LogicallyPartitioned(jax.random.normal(two, (width, hidden)) / 6, ("embed", "mlp"))
            },
        }
        return params, {"seen": jnp.zeros((width,))}

    def owns(self, update, path):
        return update != "text" or path.startswith("first")

    def denominators(self, update, batch):
        return {"weight": batch["weight"].sum()}

    def loss_parts(self, update, params, model_state, batch, denominators, key):
        keys = jax.vmap(lambda row: jax.random.fold_in(key, row))(batch["row"])
        noise = jax.vmap(lambda k: jax.random.normal(k, (self.model.width,)))(keys)
        x = batch["x"] + 0.1 * noise
        hidden = nn.with_logical_constraint(jnp.tanh(x @ params["first"]["kernel"].T), ("batch", "mlp"))
        y = hidden @ params["second"]["kernel"].T
        numerator = (batch["weight"] * (y - batch["y"]) ** 2).sum()
        sums = {"error": (numerator, batch["weight"].sum())}
        return LossParts(numerator / denominators["weight"], sums, {"seen": x.sum(0)})

    def update_model_state(self, model_state, statistics, key, step):
        return {"seen": 0.9 * model_state["seen"] + statistics["seen"]}, {}


def loss_by_hand(params, batch, key):
    """The loss of a `SmallTask` in numpy and float64, and its gradients."""
    noise = [jax.random.normal(jax.random.fold_in(key, row), (16,)) for row in range(len(batch["x"]))]
    x = batch["x"] + 0.1 * np.asarray(noise, np.float64)
    first, second = (np.asarray(params[name]["kernel"], np.float64) for name in ("first", "second"))
    hidden = np.tanh(x @ first.T)
    error = hidden @ second.T - batch["y"]
    weight = batch["weight"] / batch["weight"].sum()
    slope = 2 * weight * error
    grads = {"first": ((slope @ second) * (1 - hidden**2)).T @ x, "second": slope.T @ hidden}
    return float((weight * error**2).sum()), grads


def with_task(experiment: ExperimentConfig, **fields) -> ExperimentConfig:
    """The same experiment with other fields of its task."""
    return dataclasses.replace(experiment, task=dataclasses.replace(experiment.task, **fields))

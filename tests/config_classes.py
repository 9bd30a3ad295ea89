"""Small config classes for the tests of recipes."""

from __future__ import annotations

import dataclasses
from typing import Literal

from moshijax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Stack:
    dim: int = 8
    num_heads: int = 2
    dropout: float = 0.0
    norm: Literal["layer_norm", "rms_norm"] = "layer_norm"

    def __post_init__(self) -> None:
        if self.dim % self.num_heads:
            raise ConfigError(f"dim {self.dim} is not divisible by num_heads {self.num_heads}; change one of them")


@dataclasses.dataclass(frozen=True)
class Model:
    temporal: Stack
    depth: Stack | None = None
    delays: tuple[int, ...] = (0, 1)


@dataclasses.dataclass(frozen=True)
class Experiment:
    model: Model
    steps: int = 10
    path: str = "here"
    rate: float | None = None
    save: bool = True
    extra: tuple[Stack, ...] = ()


SMALL = Model(temporal=Stack(dim=4))

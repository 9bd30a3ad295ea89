"""The language model over a grid of text and audio tokens: layouts, training forward, losses, generation."""

from __future__ import annotations

from moshijax.lm import configs, delays, layouts
from moshijax.lm.conditioning import Vectors
from moshijax.lm.config import DepthConfig, LMConfig, LookupConditioner, TensorConditioner
from moshijax.lm.generation import (
    StepOutput,
    generate_step,
    init_generation,
    prefill,
    reset_generation,
    set_conditions,
)
from moshijax.lm.guidance import Guidance
from moshijax.lm.layouts import Stream, StreamLayout
from moshijax.lm.losses import LossConfig
from moshijax.lm.model import (
    LMOutput,
    abstract,
    count_parameters,
    forward,
    init,
    init_boxed,
    partition_specs,
    score,
    target_mask,
)
from moshijax.lm.sampling import Sampling
from moshijax.lm.scoring import LMScores
from moshijax.nn.lora import LoRA

__all__ = [
    "DepthConfig",
    "Guidance",
    "LMConfig",
    "LMOutput",
    "LoRA",
    "LMScores",
    "LookupConditioner",
    "LossConfig",
    "Sampling",
    "StepOutput",
    "Stream",
    "StreamLayout",
    "TensorConditioner",
    "Vectors",
    "abstract",
    "configs",
    "count_parameters",
    "delays",
    "forward",
    "generate_step",
    "init",
    "init_boxed",
    "init_generation",
    "layouts",
    "partition_specs",
    "prefill",
    "reset_generation",
    "score",
    "set_conditions",
    "target_mask",
]

"""Loading language models from published files, imported weights or runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moshijax.lm.config import LMConfig
from moshijax.weights.families.lm import LANGUAGE_MODEL
from moshijax.weights.opening import open_model


def load_lm(
    path: str | Path,
    dtype: str | None = None,
    stacked: bool = False,
    shardings: Any = None,
    merge_adapter: bool = True,
) -> tuple[LMConfig, dict[str, Any]]:
    """Load a language model from published weights, from imported ones, or from a run.

    Args:
      path: a safetensors file or the index of several (one without a `config.json` beside it is read as the released
        Moshi 7B), a directory with its `config.json`, a directory of `moshijax weights import`, or a run.
      dtype: type of the parameters and of the computation; by default that of the file.
      stacked: True for the training layout.
      shardings: a tree of `jax.sharding.Sharding` like the parameters: every process reads what its devices hold,
        and the parameters are jax arrays.
      merge_adapter: False: a LoRA adapter stays apart from the weights, as parameters of its own (`config.lora`).

    Returns:
      `(config, params)`; `params` is a tree of numpy arrays, of jax arrays with `shardings`.

    Raises:
      DataError: nothing readable there, or the tensors do not fit the config.
      ConfigError: a config.json that cannot be used.
    """
    model = open_model(path, LANGUAGE_MODEL.kind)
    return (model if merge_adapter else model.family.unmerged(model)).load(dtype, stacked, shardings)

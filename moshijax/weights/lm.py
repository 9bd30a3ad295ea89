"""Language models in: published files, imported weights, runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from moshijax.lm.config import LMConfig
from moshijax.tokens import EOS, PAD
from moshijax.weights.source import open_source


def load_lm(
    path: str | Path,
    dtype: str | None = None,
    stacked: bool = False,
    shardings: Any = None,
    merge_adapter: bool = True,
) -> tuple[LMConfig, dict[str, Any]]:
    """A language model from published weights, from imported ones, or from a run.

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
    source = open_source(path, "lm")
    source = source if merge_adapter else source.unmerged()
    config = source.config
    if dtype is not None:
        config = config.with_dtype(dtype, dtype)
        config = replace(config, lora=config.lora and replace(config.lora, param_dtype=None))
    params = source.leaves(config, stacked, shardings).tree()
    if source.record.config.get("model_type") == "hibiki":  # an end of text must not end the translation
        table = params["text_embedding"]["table"]
        if isinstance(table, np.ndarray):
            table[0, EOS] = table[0, PAD]
        else:
            params["text_embedding"]["table"] = table.at[0, EOS].set(table[0, PAD])
    return config, params

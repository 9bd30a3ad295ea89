"""Loading codecs from published files, imported weights or runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from moshijax.codec import MimiConfig
from moshijax.weights.families.codec import CODEC
from moshijax.weights.opening import open_model


def load_mimi(path: str | Path, config: MimiConfig | None = None) -> tuple[MimiConfig, dict[str, Any]]:
    """Load a codec from published weights, from imported ones, or from a run.

    Args:
      path: a safetensors file; a directory with `model.safetensors` and a codec's `config.json`, or with a language
        model whose `config.json` names its codec (`mimi_name`, `mimi_config_name`); a directory of `moshijax
        weights import`; or a run.
      config: of the codec in a lone file; by default the published Mimi.

    Returns:
      `(config, params)`; `params` holds float32 numpy arrays in the training layout
      (`moshijax.codec.inference_layout` makes it fast).

    Raises:
      DataError: the file is incomplete or not of this codec; missing, unexpected and mis-shaped tensors are listed
        together.
      ConfigError: the config asks for what this codec does not support.
    """
    return open_model(path, CODEC.kind, config).load()

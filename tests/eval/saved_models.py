"""Models with parameters of our choice, written where commands find them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from moshijax import lm
from moshijax.testing.tiny import LM
from moshijax.weights.families import FAMILIES
from moshijax.weights.imported import write_imported
from moshijax.weights.model import Provenance
from moshijax.weights.tensors import InMemory


def save(folder: Path, kind: str, config: Any, params: Any) -> Path:
    """Write imported weights: `kind` is "lm" or "codec"."""
    folder.mkdir()
    flat = InMemory({name: np.asarray(x) for name, x in flatten_dict(params, sep="/").items()})
    model = FAMILIES[kind].of_parameters(config, flat, Provenance("kyutai", {}), folder)
    write_imported(model, folder, lambda name: None)
    return folder


def unigram(layout: lm.StreamLayout, logits_QV: np.ndarray, text_logits_V: np.ndarray | None = None, **fields: Any):
    """A model that says the same distribution everywhere, whatever it hears: (config, params in the inference layout).

    All parameters are 0 but the biases of the heads, which are the logits.
    """
    config = dataclasses.replace(LM, layout=layout, bias_proj=True, **fields)
    params = jax.tree.map(lambda spec: np.zeros(spec.shape, spec.dtype), lm.abstract(config, stacked=False))
    heads = {path: x for path, x in flatten_dict(params, sep="/").items() if path.endswith("bias")}
    for path, bias in heads.items():
        if path.startswith("text_head") and text_logits_V is not None:
            bias[:] = text_logits_V
        elif path.startswith("depth/heads"):
            bias[:] = logits_QV if bias.ndim == 2 else logits_QV[int(path.split("steps_")[1].split("/")[0])]
    return config, params

"""The released form of a language model, which has depth steps only for the rows that it generates.

Tested in `tests/train/tasks/test_stages.py`.
"""

from __future__ import annotations

import dataclasses

from flax.traverse_util import flatten_dict

from moshijax.errors import ConfigError
from moshijax.lm import LMConfig, transforms
from moshijax.lm.layouts import StreamLayout
from moshijax.weights.model import OpenedModel, Provenance
from moshijax.weights.tensors import InMemory


def released(model: OpenedModel) -> OpenedModel:
    """Return a language model without the depth steps of the rows that are only given to it.

    Raises:
      ConfigError: it has none, or an adapter that is not merged.
    """
    config: LMConfig = model.config
    if model.adapter is not None:
        raise ConfigError(f"{model.where} has an adapter, which has steps of its own; merge it first")
    layout = StreamLayout(tuple(dataclasses.replace(s, scored=s.scored and s.generated) for s in config.layout.streams))
    depth = config.depth
    if depth is not None and depth.schedule is not None:
        schedule = depth.schedule[: layout.dep_q]
        widths = depth.hidden_dims and depth.hidden_dims[: max(schedule) + 1]
        depth = dataclasses.replace(depth, schedule=schedule, hidden_dims=widths)
    target = dataclasses.replace(config, layout=layout, depth=depth)
    flat = flatten_dict(model.parameters(stacked=True).tree(), sep="/")
    flat = transforms.release(config, flat, target, {})[1]
    # The published config describes the model as it was.
    changed = model.family.of_parameters(target, InMemory(flat), Provenance("run"), model.where)
    return dataclasses.replace(changed, codec=model.codec, tokenizer=model.tokenizer)

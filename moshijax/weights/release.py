"""The released form of a language model, which has depth steps for the rows that it generates alone."""

from __future__ import annotations

import dataclasses

from flax.traverse_util import flatten_dict

from moshijax.errors import ConfigError
from moshijax.lm import LMConfig, transforms
from moshijax.lm.layouts import StreamLayout
from moshijax.weights.source import Record, Source, abstract, table_of
from moshijax.weights.table import Published, same


def released(source: Source) -> Source:
    """Return a language model without the depth steps of the rows that are only given to it.

    Raises:
      ConfigError: it has none, or an adapter that is not merged.
    """
    config: LMConfig = source.config
    if source.adapter is not None:
        raise ConfigError(f"{source.where} has an adapter, which has steps of its own: merge it first")
    layout = StreamLayout(tuple(dataclasses.replace(s, scored=s.scored and s.generated) for s in config.layout.streams))
    depth = config.depth
    if depth is not None and depth.schedule is not None:
        schedule = depth.schedule[: layout.dep_q]
        widths = depth.hidden_dims and depth.hidden_dims[: max(schedule) + 1]
        depth = dataclasses.replace(depth, schedule=schedule, hidden_dims=widths)
    target = dataclasses.replace(config, layout=layout, depth=depth)
    params = flatten_dict(source.leaves(stacked=True).tree(), sep="/")
    flat = transforms.release(config, params, target, {})[1]
    table = same(abstract("lm", target))
    published = Published(table_of("lm", target), flat)
    record = Record("run")  # the published config describes the model as it was
    return dataclasses.replace(
        source, config=target, tensors=published, record=record, table=table, stored=Published(table, flat)
    )

"""The weights of a model, opened: what every way to store them leads to, and every command starts from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from moshijax.weights.table import AsParameters, Table
from moshijax.weights.tensors import Tensors

if TYPE_CHECKING:
    from moshijax.weights.families.family import Family
    from moshijax.weights.lora import Adapter


@dataclass(frozen=True)
class Provenance:
    """How a model was published, where its parameters do not show it.

    Attributes:
      format: of the files, one of `moshijax.weights.transfer.FORMATS`; "run" for a run of ours.
      config: `config.json` as it was.
      dtypes: published name -> dtype, where it is not that of our parameter.
      extra: published name -> what no parameter holds: the row scales of int8 weights, a projection that is not used.
      preprocessor: `preprocessor_config.json` of Transformers as it was; for recognition it has the delays in seconds.
    """

    format: str
    config: Mapping[str, Any] = field(default_factory=dict)
    dtypes: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, np.ndarray] = field(default_factory=dict)
    preprocessor: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class OpenedModel:
    """The weights of one model, not yet read.

    Attributes:
      family: what kind of model this is.
      config: of the model; its dtypes are those that hold every value of the file.
      tensors: the published tensors under the names of the released files.
      provenance: how it was published.
      where: for messages.
      table: where the tensors of `stored` lie among our parameters.
      stored: what our parameters are made of: the published tensors, or the parameters themselves.
      codec: the codec that a language model comes with.
      tokenizer: its SentencePiece model.
      adapter: updates that `stored` contains and `tensors` does not.
    """

    family: Family
    config: Any
    tensors: Tensors
    provenance: Provenance
    where: Path
    table: Table
    stored: Tensors
    codec: OpenedModel | None = None
    tokenizer: Path | None = None
    adapter: Adapter | None = None

    def parameters(self, config: Any = None, stacked: bool = False, shardings: Any = None) -> AsParameters:
        """Return our parameters, each read when it is asked for.

        Args:
          config: of the model with other dtypes; default: its own.
          stacked: True for the training layout.
          shardings: a tree of `jax.sharding.Sharding` like the parameters; default: numpy arrays.
        """
        abstract = self.family.abstract(config or self.config, stacked)
        return AsParameters(self.table, self.stored, abstract, shardings)

    def load(
        self, dtype: str | None = None, stacked: bool = False, shardings: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """Return config and parameters, ready for use.

        Args:
          dtype: of the parameters and of the computation; default: that of the file.
          stacked: True for the training layout.
          shardings: as for `parameters`.
        """
        config = self.config if dtype is None else self.family.with_dtype(self.config, dtype)
        params = self.parameters(config, stacked, shardings).tree()
        return config, self.family.adjusted(params, self.provenance)

"""What a family of models says about itself. Tested in `tests/weights/test_families.py`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from flax.traverse_util import flatten_dict

from moshijax.errors import ConfigError, DataError
from moshijax.weights.compare import Part
from moshijax.weights.model import OpenedModel, Provenance
from moshijax.weights.published import PublishedFiles
from moshijax.weights.safetensors import check_names_and_shapes
from moshijax.weights.table import AsPublished, Table, same
from moshijax.weights.tensors import Finite, InMemory, ShapesOnly, Tensors
from moshijax.weights.writer import Progress

#: Dtypes of tensors that can be kept as they are.
DTYPES = ("float32", "bfloat16", "float16")


class Family(ABC):
    """A family of models: its config, its parameters, and its published files.

    The abstract methods are what every family has to say; the others have a default that fits a family without
    adapters, codec or training-only parameters.

    Attributes:
      kind: its name in `model.json`.
      title: what a message calls such a model, with an article.
      config_class: frozen dataclass of a model's config.
      unfit: what to do where such a model is given and another one is needed.
      comes_with_codec: whether a model of this family needs a codec to hear or speak.
      transforms: name -> transform between the stages of its training (`moshijax.lm.transforms`).
      record_kind: the kind that records of reference numbers name (`moshijax.weights.verify`).
      record_arrays: what such a record has to hold.
    """

    kind: ClassVar[str]
    title: ClassVar[str]
    config_class: ClassVar[type]
    unfit: ClassVar[str] = "name the other one"
    comes_with_codec: ClassVar[bool] = False
    transforms: ClassVar[Mapping[str, Callable[..., Any]]] = {}
    record_kind: ClassVar[str]
    record_arrays: ClassVar[tuple[str, ...]]

    # Parameters

    @abstractmethod
    def abstract(self, config: Any, stacked: bool = False) -> dict[str, Any]:
        """Return the tree of shapes and dtypes of a model's parameters; `stacked`: in the training layout."""

    @abstractmethod
    def table(self, config: Any) -> Table:
        """Return where the published tensors of a model lie among its parameters."""

    def parts(self, config: Any) -> dict[str, int]:
        """Return the declared numbers of layers and the like, each of which has tensors of its own."""
        return {}

    def check_parts(self, config: Any, tensors: Tensors, where: Path) -> None:
        """Refuse a config that declares more parts than there are tensors, before anything is made for each part.

        Raises:
          DataError: the config is of another model.
        """
        for name, count in self.parts(config).items():
            if count > len(tensors.shapes):
                raise DataError(
                    f"{where} holds {len(tensors.shapes)} tensors, its config declares {count} {name}; use the file "
                    "and config of one model"
                )

    def with_dtype(self, config: Any, dtype: str) -> Any:
        """Return the config with another dtype of parameters and computation, where the family has a choice."""
        return config

    def adjusted(self, params: dict[str, Any], provenance: Provenance) -> dict[str, Any]:
        """Return parameters with the changes that loaders of some published models make."""
        return params

    # Runs

    def from_training(self, params: Any, model_state: Any) -> dict[str, Any]:
        """Return the parameters of a model from what its run has learnt with gradients, and without."""
        return params

    def to_training(self, params: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what a run learns with gradients, and without, of the parameters of a model."""
        return params, {}

    def open_run(self, config: Any, params: dict[str, Any], where: Path, tokenizer: Path | None) -> OpenedModel:
        """Open the parameters of a run's model (a tree, either layout)."""
        model = self.of_parameters(config, InMemory(flatten_dict(params, sep="/")), Provenance("run"), where)
        return replace(model, tokenizer=tokenizer)

    def of_parameters(self, config: Any, flat: Tensors, provenance: Provenance, where: Path) -> OpenedModel:
        """Open parameters by their paths, in either layout."""
        stored = same(self.abstract(config))
        tensors = Finite(AsPublished(self.table(config), flat, provenance.dtypes), where)
        ours = Finite(AsPublished(stored, flat), where)
        return OpenedModel(self, config, tensors, provenance, where, stored, ours)

    # Published files

    @abstractmethod
    def claims(self, published: PublishedFiles) -> bool:
        """Return whether a model of this family is in the files.

        Raises:
          DataError: the weight file is missing or damaged.
        """

    @abstractmethod
    def open_published(self, published: PublishedFiles, config: Any = None) -> OpenedModel:
        """Open the model that was claimed.

        Args:
          published: where it is.
          config: of the model in a lone file; default: what the files say.

        Raises:
          DataError: damaged or incomplete files, or tensors that do not fit the config.
          ConfigError: a config that this family does not have.
        """

    @abstractmethod
    def write_published(
        self, model: OpenedModel, folder: Path, format: str, max_bytes: int | None, progress: Progress
    ) -> None:
        """Write a model, with its codec and tokenizer where it has them, into a new folder.

        Args:
          model: what to write.
          folder: where to write it.
          format: one of `moshijax.weights.transfer.FORMATS`.
          max_bytes: of the tensors in one file; None: everything in one file.
          progress: called with every name before it is written.

        Raises:
          ConfigError: the format has no place for this model.
        """

    def dtypes_settled(self, config: Any, dtypes: Mapping[str, np.dtype]) -> Any:
        """Return the config with the dtypes that hold every value of the published tensors."""
        return config

    def published_shapes(self, config: Any) -> AsPublished:
        """Return names, shapes and dtypes of a model's published tensors; nothing is allocated."""
        return AsPublished(self.table(config), ShapesOnly(self.abstract(config)))

    def opened(self, config: Any, tensors: Tensors, provenance: Provenance, where: Path) -> OpenedModel:
        """Check names and shapes of published tensors, settle the dtypes, and open them as a model.

        Raises:
          DataError: tensors are missing, unexpected, of other shapes (all are listed), or of a dtype that no
            parameter has.
        """
        self.check_parts(config, tensors, where)
        table = self.table(config)
        shapes = {name: entry.shape for name, entry in table.items()}
        check_names_and_shapes(where, tensors.shapes, shapes, provenance.extra)
        odd = [name for name, dtype in tensors.dtypes.items() if dtype.name not in DTYPES]
        if odd:
            raise DataError(
                f"{where}: {odd[0]} is {tensors.dtypes[odd[0]]}, must be one of {', '.join(DTYPES)}; convert it"
            )
        config = self.dtypes_settled(config, {name: tensors.dtypes[name] for name in table})
        ours = self.published_shapes(config).dtypes
        dtypes = {name: tensors.dtypes[name].name for name in table if tensors.dtypes[name] != ours[name]}
        tensors = Finite(tensors, where)
        return OpenedModel(self, config, tensors, replace(provenance, dtypes=dtypes), where, table, tensors)

    # What only some families have

    def with_adapter(self, model: OpenedModel, path: Path) -> OpenedModel:
        """Return the model with the adapter in a file added to its weights.

        Raises:
          ConfigError: this family has no adapters.
          DataError: the adapter does not fit, or changes nothing.
        """
        raise ConfigError(f"{model.where} is {self.title}, which takes no adapter; omit it")

    def unmerged(self, model: OpenedModel) -> OpenedModel:
        """Return the model with its adapter as parameters of its own; a model without one as it is.

        Raises:
          ConfigError: an adapter that can only be merged.
        """
        return model

    def released(self, model: OpenedModel) -> OpenedModel:
        """Return the model as such models are published: without what only training uses.

        Raises:
          ConfigError: there is no other form, or the model has an adapter that is not merged.
        """
        raise ConfigError(f"{model.where} is {self.title}, which has no other released form; omit --release")

    # Comparison with reference numbers

    @abstractmethod
    def compare(self, config: Any, params: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> list[Part]:
        """Compare every part of a model with the arrays of a record, in the order in which they are computed.

        Args:
          config: of the model.
          params: in float32.
          arrays: of the record.

        Raises:
          DataError: the record is of another model.
        """

"""Another text vocabulary for a language model: rows of shared pieces move, the others start afresh."""

from __future__ import annotations

import dataclasses
import zlib
from collections.abc import Sequence

import numpy as np

from moshijax.errors import ConfigError
from moshijax.tokens import BOS, EOS, EPAD, PAD
from moshijax.weights.formats.lm_config import loader_fields, published_config
from moshijax.weights.formats.lm_table import lm_table
from moshijax.weights.model import OpenedModel, Provenance
from moshijax.weights.names import Group, Renamed, renamed

SPECIAL = (EPAD, BOS, EOS, PAD)
#: Tables of text ids, with a last row for the initial token.
TABLES = ("text_emb.weight", "depformer_text_emb.weight")
HEADS = ("text_linear.weight", "text_linear.bias")


def carried(old: Sequence[str], new: Sequence[str]) -> np.ndarray:
    """Return for every new id the old id of the same piece, -1 where there is none; special ids keep their place."""
    places = {piece: i for i, piece in enumerate(old) if i not in SPECIAL}
    return np.asarray([i if i in SPECIAL else places.get(piece, -1) for i, piece in enumerate(new)], np.int64)


def retokenize(model: OpenedModel, old: Sequence[str], new: Sequence[str], seed: int = 0) -> OpenedModel:
    """Return the model over the pieces `new`; everything but the text tables and heads stays as it was.

    Args:
      model: a language model whose text ids are those of `old`.
      old: pieces of the model.
      new: pieces that it is to have.
      seed: of the fresh rows, which are drawn as a new model's (`moshijax.lm.init`).

    Raises:
      ConfigError: `old` is not the vocabulary of the model, or the model holds what cannot follow: an adapter, int8.
    """
    config = model.config
    if len(old) > config.text_card:
        raise ConfigError(
            f"{model.where} has text_card={config.text_card}, the old tokenizer {len(old)} pieces; give the tokenizer "
            "of the model with --old-tokenizer"
        )
    if model.adapter is not None or model.provenance.config.get("quantize"):
        what = "an adapter" if model.adapter is not None else "int8 weights, not bf16 ones"
        raise ConfigError(
            f"{model.where} has {what}: only plain weights can change their vocabulary; merge or fetch them"
        )
    places = carried(old, new)
    # A head of another size than the vocabulary says something else than a piece, and stays.
    resized = (*TABLES, *(HEADS if config.text_card_out in (None, config.text_card) else ()))
    config = dataclasses.replace(
        config, text_card=len(new), text_card_out=None if len(resized) > len(TABLES) else config.text_card_out
    )
    shapes = {name: entry.shape for name, entry in lm_table(config).items()}

    def change(name: str, array: np.ndarray) -> np.ndarray:
        random = np.random.RandomState([seed, zlib.crc32(name.encode())])
        if name.endswith(".bias"):
            fresh = np.zeros(shapes[name], array.dtype)
        else:
            draws = np.clip(random.standard_normal(shapes[name]), -3, 3) / np.sqrt(shapes[name][1])
            fresh = draws.astype(array.dtype)
        known = np.flatnonzero(places >= 0)
        fresh[known] = array[places[known]]
        if name in TABLES:
            fresh[-1] = array[-1]
        return fresh

    groups = [
        Group({name: shape}, {name: shapes[name]}, lambda arrays, name=name: [change(name, arrays[0])])
        if name in resized
        else renamed(name, name, shape)
        for name, shape in model.tensors.shapes.items()
    ]
    tensors = Renamed(model.tensors, groups, reading=True)
    stated = model.provenance.config
    fields = {**published_config(config), **(loader_fields(stated) if "delays" in stated else {})}
    fields.pop("tokenizer_name", None)
    provenance = Provenance("kyutai", fields, model.provenance.dtypes, model.provenance.extra)
    return dataclasses.replace(
        model,
        config=config,
        tensors=tensors,
        provenance=provenance,
        table=lm_table(config),
        stored=tensors,
        tokenizer=None,
    )

"""One frame of a call as pure functions: user audio in, the model's audio and text out.

`CallStep` composes the codec and the language model into the three programs of an artifact. At their boundary there are
only flat dicts of arrays, named by path, so that whoever runs them needs no class of ours.

The order within a step is fixed: reset, encode, language model, decode. A row's first executed step after a reset only
primes position 0: its audio is ignored, its encoder is not advanced and nothing is returned for it; so the first frame
the encoder sees is the first that the model hears (the generator of `moshi`, `models/lm.py`, ignores the first codes it
is given). The decoder advances only on ready rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

from moshijax import codec, lm
from moshijax.errors import ConfigError

if TYPE_CHECKING:
    from jaxtyping import Array

    Arrays = dict[str, Array]
    Specs = dict[str, jax.ShapeDtypeStruct]


def flatten(tree: Any, prefix: str = "") -> Arrays:
    """A pytree as {path: leaf}; paths join the keys of dicts, tuples and dataclasses with '/'."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    named = {"/".join([prefix] * bool(prefix) + [_key(key) for key in path]): leaf for path, leaf in leaves}
    if len(named) != len(leaves):
        raise AssertionError("two leaves have the same path")
    return named


def _key(key: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(key, attribute):
            return str(getattr(key, attribute))
    raise TypeError(f"no name for tree key {key!r}")


def unflatten_like(tree: Any, named: Arrays, prefix: str = "") -> Any:
    """The inverse of `flatten` for a tree of the same structure."""
    return jax.tree.unflatten(jax.tree.structure(tree), [named[name] for name in flatten(tree, prefix)])


def nest(named: Arrays) -> dict[str, Any]:
    """{'a/b': leaf} as nested dicts: parameters are dicts of dicts."""
    root: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        node = root
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = leaf
    return root


@dataclass(frozen=True)
class CallStep:
    """The programs of an artifact for one pair of models (see `moshijax.export.artifact.Programs`).

    The codec must have the frames and codes of the language model's grid; `top_k_limit` bounds what `top_k` and
    `text_top_k` may be. Weights are {'codec/...', 'lm/...'} in the inference layout of each model.
    """

    codec: codec.MimiConfig
    lm: lm.LMConfig
    top_k_limit: int = 250

    def __post_init__(self) -> None:
        layout, codebooks = self.lm.layout, self.codec.num_codebooks
        for rows in (self.given_audio, self.generated_audio):
            levels = [layout.streams[row].codebook for row in rows]
            if levels != list(range(len(rows))) or len(rows) > codebooks:
                raise ConfigError(
                    f"the grid has audio levels {levels} of one speaker, the codec {codebooks} codebooks: they must be "
                    "0, 1, ... in order and no more than the codec has; use the codec the language model was trained with"
                )
        if (self.given_audio or self.generated_audio) and self.lm.card != self.codec.quantizer.bins:
            raise ConfigError(
                f"the language model has card={self.lm.card}, the codec {self.codec.quantizer.bins} entries per codebook; "
                "use the codec the language model was trained with"
            )

    @property
    def given_audio(self) -> tuple[int, ...]:
        """Rows of the grid that come from the user's audio."""
        return self.lm.layout.given_rows

    @property
    def generated_audio(self) -> tuple[int, ...]:
        """Rows of the grid that become the model's voice."""
        return tuple(row for row in self.lm.layout.model_rows if self.lm.layout.streams[row].kind == "audio")

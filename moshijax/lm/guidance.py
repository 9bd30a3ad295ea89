"""Classifier-free guidance: logits move away from those of a second half of the row that lacks the conditions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from moshijax.errors import ConfigError
from moshijax.tokens import ZERO

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

#: Name and dtype of every parameter of guidance, one value per row.
GUIDANCE_INPUTS = {"coefficient": np.float32, "masked_until": np.int32, "text": np.bool_}


@dataclass(frozen=True)
class Guidance:
    """Parameters of guidance: numbers, or arrays `[B]` with one value per batch row.

    They are `cfg_coef`, `cfg_is_masked_until` and `cfg_is_no_text` of `models/lm.py` of `moshi`.

    Attributes:
      coefficient: c in `null + c (logits - null)`; 1 is off.
      masked_until: the second half sees `ZERO` in this many columns at the beginning, such as those of a voice prefix.
      text: whether the text logits are guided; if not, the second half sees no text either.
    """

    coefficient: Any = 1.0
    masked_until: Any = 0
    text: Any = True

    def rows(self, batch_size: int) -> dict[str, Array]:
        """Return the parameters as arrays `[B]`: the argument `guidance` of a generation step.

        Raises:
          ConfigError: a value has another batch size.
        """
        out = {}
        for name, dtype in GUIDANCE_INPUTS.items():
            value = np.asarray(getattr(self, name), dtype)
            if value.shape not in ((), (batch_size,)):
                raise ConfigError(
                    f"{name} of shape {value.shape}: must be a number or have one value per row, {batch_size}"
                )
            out[name] = jnp.asarray(np.broadcast_to(value, (batch_size,)))
        return out


def halves(tree: Any) -> Any:
    """Reshape arrays of rows with two halves from `[2 B, ...]` to `[B, 2, ...]`."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, 2, *leaf.shape[1:]), tree)


def joined(tree: Any) -> Any:
    """Invert `halves`; neither moves anything in memory."""
    return jax.tree.map(lambda leaf: leaf.reshape(-1, *leaf.shape[2:]), tree)


def null_column(
    guidance: dict[str, Array],
    column_BK: Int[Array, "B K"],
    index_BK: Int[Array, "B K"],
    started_BK: Bool[Array, "B K"],
) -> Int[Array, "B K"]:
    """Return what the second half of a row sees: less of the past, and perhaps no text.

    Args:
      guidance: as `Guidance.rows` returns them.
      column_BK: what the first half sees.
      index_BK: column of the undelayed grid that each token comes from, counted from 1.
      started_BK: False where the token is an initial one, which both halves see.
    """
    masked = index_BK <= guidance["masked_until"][:, None]
    no_text = (jnp.arange(column_BK.shape[1]) == 0) & ~guidance["text"][:, None]
    return jnp.where(started_BK & (masked | no_text), ZERO, column_BK)


def guide(guidance: dict[str, Array], logits_NV: Array) -> Array:
    """Return `null + c (logits - null)` `[B, V]` from the logits of both halves, exactly the logits where c is 1."""
    both = halves(logits_NV.astype(jnp.float32))
    return both[:, 0] + (guidance["coefficient"][:, None] - 1.0) * (both[:, 0] - both[:, 1])

"""Units of speech: the nearest of the k-means centroids of HuBERT features.

LLaMA-Omni has 1000 of layer 11 of mHuBERT (arXiv 2409.06666, 2.4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from moshijax.errors import DataError
from moshijax.nn.vq import half_squared_norm, nearest

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Int


def assign(features: Float[Array, "... D"], centroids_UD: Float[Array, "U D"]) -> Int[Array, "..."]:
    """Return the unit of every feature: the number of the nearest centroid, the first one on ties; int32.

    Args:
      features: Of the layer that the centroids were made from; with Transformers `hidden_states[11]` for layer 11.
      centroids_UD: One row per unit.

    Raises:
      DataError: Features of another width than the centroids.
    """
    if centroids_UD.ndim != 2 or features.shape[-1:] != centroids_UD.shape[1:]:
        raise DataError(
            f"features of shape {tuple(features.shape)} and centroids of shape {tuple(centroids_UD.shape)}: must have "
            "the same width; use the layer and the centroids of one model"
        )
    return nearest(features, centroids_UD, half_squared_norm(centroids_UD))

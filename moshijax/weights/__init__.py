"""Published checkpoint formats, in and out."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from moshijax.weights.lm import load_lm
    from moshijax.weights.mimi import load_mimi

__all__ = ["load_lm", "load_mimi"]


def __getattr__(name: str):
    if name == "load_mimi":
        from moshijax.weights.mimi import load_mimi

        return load_mimi
    if name == "load_lm":
        from moshijax.weights.lm import load_lm

        return load_lm
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

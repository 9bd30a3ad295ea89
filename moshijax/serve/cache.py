"""Compiled programs kept between starts, in the user's cache folder, unless jax was told another."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import jax

_HIT, _MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


def folder() -> Path:
    """Return where this user's caches of ours are."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "moshijax"


@dataclass
class Compilations:
    """How many programs were read from the cache and compiled, since `keep_compiled`.

    Attributes:
      path: of the cache; None where nothing is kept.
      reason: why nothing is kept.
      hits, misses: programs.
    """

    path: str | None
    reason: str = ""
    hits: int = 0
    misses: int = 0

    def __str__(self) -> str:
        if self.path is None:
            return f"compiled programs are not kept: {self.reason}"
        if not self.misses:
            return f"{self.hits} compiled programs read from {self.path}"
        return f"{self.misses} programs compiled, {self.hits} read, all kept in {self.path}"


def keep_compiled() -> Compilations:
    """Keep what is compiled from now on; `JAX_COMPILATION_CACHE_DIR` names another folder than ours."""
    if not jax.config.jax_compilation_cache_dir:
        path = folder() / "compiled"
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return Compilations(None, f"{path}: {error.strerror}; XDG_CACHE_HOME names another folder")
        jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    counts = Compilations(jax.config.jax_compilation_cache_dir)

    def count(event: str, **kwargs: object) -> None:
        counts.hits += event == _HIT
        counts.misses += event == _MISS

    jax.monitoring.register_event_listener(count)
    return counts

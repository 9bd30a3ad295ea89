"""Run an exported artifact where there is no model code: numpy, jax, flatbuffers and safetensors are enough.

    artifact = runtime.load("artifact")
    rows = runtime.Rows(artifact, batch=1)
    row = rows.open(runtime.CallOptions(seed=7))
    frame = rows.submit(pcm_BN).result()

Nothing is imported until it is used, so that `moshijax run --help` does not wait for jax.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moshijax.runtime.artifact import Artifact, load
    from moshijax.runtime.hosting import Call, ScriptWord
    from moshijax.runtime.prompt import Prompt
    from moshijax.runtime.rows import CallOptions, Frame, Row, Rows, Tick
    from moshijax.runtime.text import Words

__all__ = [
    "Artifact",
    "Call",
    "CallOptions",
    "Frame",
    "Prompt",
    "Row",
    "Rows",
    "ScriptWord",
    "Tick",
    "Words",
    "load",
]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from moshijax.runtime import artifact, hosting, prompt, rows, text

    return next(getattr(module, name) for module in (artifact, hosting, prompt, rows, text) if hasattr(module, name))

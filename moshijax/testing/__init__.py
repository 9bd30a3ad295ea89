"""Checks that users of the library can run on their own layers and models."""

from moshijax.testing.streaming import check_streaming, jittered

__all__ = ["check_streaming", "jittered"]

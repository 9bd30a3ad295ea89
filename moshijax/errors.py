"""Errors that a user can act on, each with the exit code of the command line."""

from __future__ import annotations


class MoshijaxError(Exception):
    """Something failed while working. The message is one line: the value, the rule and the remedy."""

    exit_code = 1


class ConfigError(MoshijaxError, ValueError):
    """Arguments, a recipe or a model configuration that cannot work."""

    exit_code = 2


class DataError(MoshijaxError):
    """A recording, transcript, data set or weights file that cannot be used."""

    exit_code = 3


class Stopped(MoshijaxError):
    """Stopped by a signal after saving; the same command resumes."""

    exit_code = 75


def require(condition: bool, message: str) -> None:
    """Check a rule of a configuration.

    Raises:
      ConfigError: with this message, if the condition does not hold.
    """
    if not condition:
        raise ConfigError(message)

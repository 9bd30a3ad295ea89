"""Options of the commands that run long jobs: where what they read and write is, and who does the work."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from moshijax.cli.common import PathName


class Place(PathName):
    """A path here or in a bucket; see `moshijax.data.buckets`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; bad usage as of `PathName`."""
        if "://" not in str(value):
            return Path(super().convert(value, param, ctx))
        from moshijax.data import buckets

        return buckets.place(value)


def runner_options(function: Any) -> Any:
    """Add the arguments `runner` and `runner_options`, for `moshijax.data.on_beam.runner_of`, to a command."""
    for option in (
        click.option(
            "--runner-option",
            "runner_options",
            multiple=True,
            metavar="NAME=VALUE",
            help="An option of the Beam runner, such as region=europe-west4; may be given several times.",
        ),
        click.option(
            "--runner",
            default="local",
            show_default=True,
            metavar="NAME",
            help="Who does the work: local, beam:direct (extra beam), or beam: and a Beam runner.",
        ),
    ):
        function = option(function)
    return function

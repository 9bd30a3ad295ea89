"""`python -m moshijax.runtime ARTIFACT --user IN.wav --out OUT.wav`: `moshijax run` without click and rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moshijax import files
from moshijax.annotations import shown
from moshijax.errors import ConfigError, MoshijaxError
from moshijax.runtime import options, play


def main(argv: Sequence[str] | None = None) -> int:
    """Play one recording, or speak one text; return the exit code."""
    artifact, keywords = options.parse(argv, "python -m moshijax.runtime", play.run.__doc__.split("\n\n")[0])
    try:
        result = play.run(artifact, **keywords)
    except MoshijaxError as error:
        return _fail(error, error.exit_code)
    except OSError as error:
        if error.errno not in files.BAD_PATH or not error.filename:
            raise
        return _fail(f"cannot use {shown(error.filename)}: {error.strerror}; check the path", ConfigError.exit_code)
    sys.stdout.write("\n".join(play.report_lines(result)) + "\n")
    return 0


def _fail(message: object, exit_code: int) -> int:
    sys.stderr.write(f"error: {' '.join(str(message).split())}\n")
    return exit_code


if __name__ == "__main__":
    raise SystemExit(main())

"""`python -m moshijax.runtime ARTIFACT --user IN.wav --out OUT.wav`: `moshijax run` without click and rich."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from moshijax.errors import MoshijaxError
from moshijax.runtime import options, play


def main(argv: Sequence[str] | None = None) -> int:
    """Play one recording, or speak one text; return the exit code."""
    artifact, keywords = options.parse(argv, "python -m moshijax.runtime", play.run.__doc__.split("\n\n")[0])
    try:
        result = play.run(artifact, **keywords)
    except MoshijaxError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    sys.stdout.write("\n".join(play.report_lines(result)) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())

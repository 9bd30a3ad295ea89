"""`python -m moshijax.runtime ARTIFACT --user IN.wav --out OUT.wav` plays a recording through an artifact."""

from moshijax.runtime.play import main

if __name__ == "__main__":
    raise SystemExit(main())

"""Programs for maintainers and operators, run from the repository root: `python -m tools.bench.lm`."""

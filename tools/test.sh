#!/usr/bin/env bash
# Everything the tests need, then the tests: lint, import rules, pytest. Arguments go to pytest (for example -m 'not slow').
# VENV (default .venv) is the virtual environment, made with PYTHON (default python3) when it is not there.
set -euo pipefail
cd "$(dirname "$0")/.."
venv=${VENV:-.venv}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[test]'
"$venv/bin/ruff" check .
"$venv/bin/ruff" format --check .
"$venv/bin/lint-imports" --no-cache
# Whole files per process, so that what a file trains or exports once is trained once.
exec "$venv/bin/python" -m pytest --numprocesses logical --maxprocesses 8 --dist loadfile --no-loadscope-reorder "$@"

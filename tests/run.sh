#!/usr/bin/env bash
# Install the project with its test tools and run every test that this machine can run.
#
#   bash tests/run.sh [PYTEST ARGUMENTS]
#
# Uses the active virtual environment, or makes .venv. Tests marked gpu are skipped, visibly, where
# there is no GPU. Two processes share the tests (-n 0: one, as a debugger needs it).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=/dev/null
. tools/bootstrap.sh dev
# The pool of ranks shares the cores: one thread for each process.
OMP_NUM_THREADS=1 python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder "$@"

#!/usr/bin/env bash
# The slow faults, one after another.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python -m pytest -n 0 -m slow tests/faults "$@"

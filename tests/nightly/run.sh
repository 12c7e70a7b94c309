#!/usr/bin/env bash
# What is too dear for every run, one after another: the slow faults, every algorithm, engine and packing, and the pages' long commands.
set -euo pipefail
cd "$(dirname "$0")/../.."
exec python -m pytest -n 0 -m slow "$@"

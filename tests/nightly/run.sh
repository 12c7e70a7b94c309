#!/usr/bin/env bash
# Runs what takes too long for every change: first the slow tests, then the tests of numbers again with other instructions of the
# processor and with two threads.
set -euo pipefail
cd "$(dirname "$0")/../.."
python -m pytest -n 0 -m slow "$@"
numbers=(tests/{privacy,methods,models,baselines,algorithms,training,evidence/check} tests/test_contract.py tests/test_recorded.py)
for processor in ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=2; do
  echo "+ $processor"
  env "$processor" python -m pytest -n 0 "${numbers[@]}"
done

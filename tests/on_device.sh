#!/usr/bin/env bash
# The device tests on another device than the CPU: `tests/on_device.sh cuda` where there is a GPU; `tests/on_device.sh xla [VENV]` on XLA's CPU
# device, where a tensor left on the CPU is an error. The latter makes a virtual environment of about 7 GB first (torch and torch_xla 2.9.0).
set -euo pipefail
cd "$(dirname "$0")/.."
case "${1:-}" in
cuda) python=python ;;
xla)
    venv=${2:-$HOME/.cache/fedsim/xla}
    python=$venv/bin/python
    if [ ! -x "$python" ]; then
        python3.11 -m venv "$venv"
        "$python" -m pip install --no-cache-dir torch==2.9.0 torch_xla==2.9.0 torchvision==0.24.0 -e '.[dev]'
    fi
    ;;
*) echo "usage: tests/on_device.sh cuda | xla [VENV]" >&2 && exit 2 ;;
esac
export FEDSIM_TEST_DEVICE=$1 PYTHONPATH=$PWD
pytest=("$python" -m pytest -p no:xdist -o addopts="")
[ "$1" = cuda ] && exec "${pytest[@]}" tests/device
# a process of its own for each test: XLA's compiler on the CPU fails after some hundred programs
failed=0
log=$(mktemp)
while IFS= read -r test; do
    "${pytest[@]}" -q "$test" </dev/null >"$log" 2>&1 && echo "passed $test" || { failed=1; echo "FAILED $test"; tail -n 40 "$log"; }
done < <("${pytest[@]}" --collect-only -q tests/device | grep ::)
rm -f "$log"
exit $failed

#!/usr/bin/env bash
# What a GPU gives diffmem, in at most four minutes: sections with limits of their own, JSON after each, no download.
# Uses this Python's own torch; wheels that it lacks are installed from WHEELS (a folder brought along), without dependencies.
#   benchmarks/gpu/run.sh OUT.json [--tiny] [--device cuda] [--seconds 240]
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-python3}
export HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 PYTHONPATH="$here/../../src:$here/../..${PYTHONPATH:+:$PYTHONPATH}"
if [ -n "${WHEELS:-}" ]; then
    target=$(mktemp -d)
    trap 'rm -rf "$target"' EXIT
    "$python" -m pip install --quiet --no-index --no-deps --target "$target" "$WHEELS"/*.whl
    export PYTHONPATH="$PYTHONPATH:$target"
fi
"$python" "$here/run.py" "$@"

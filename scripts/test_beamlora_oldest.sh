#!/usr/bin/env bash
# Runs beamlora's own tests with beamlora alone, on the oldest torch and transformers that pyproject.toml allows,
# in an environment of its own (about 5 GB). Tests that need DeepSpeed skip themselves there.
set -euo pipefail
cd "$(dirname "$0")/.."

environment=build/oldest
scripts/install.sh "$environment" "" \
    "torch==2.11.*" "transformers==5.17.*" "peft==0.21.*" \
    pytest pytest-timeout hypothesis
"$environment/bin/python" -c 'import peft, torch, transformers
print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}")'
"$environment/bin/python" -m pytest tests/beamlora "$@"

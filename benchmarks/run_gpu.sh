#!/usr/bin/env bash
# All that benchmarks/training.py measures on one GPU, in one go: python with torch, transformers and peft is enough.
#
#     benchmarks/run_gpu.sh [FOLDER]      # writes training.json and training.txt there; PYTHON names another python
#
# LLaMA2-7B's shape with random weights, r = 64 on all linear layers, bfloat16, 8192 tokens a step. Seven minutes
# are allowed (LIMIT, in seconds); what matters most is measured first, and each table is kept as soon as it is there.
set -euo pipefail

cd "$(dirname "$0")/.."
out=${1:-.}
mkdir -p "$out"
json=$out/training.json text=$out/training.txt
rm -f "$json" "$text"
ends=$((SECONDS + ${LIMIT:-420}))

measure() {
    local left=$((ends - SECONDS))
    ((left > 10)) || { echo "no time left for: $*" | tee -a "$text"; return; }
    timeout "$left" "${PYTHON:-python}" benchmarks/training.py --device cuda --shape llama2-7b --ranks 64 \
        --tokens 8192 --sequence 1024 --json "$json" "$@" 2>&1 | tee -a "$text" || echo "cut off: $*" | tee -a "$text"
    echo | tee -a "$text"
}

# The paper's dropout, adapters in float32 as PEFT makes them.
measure --dropout 0.05 --again --ways lora,beamlora,limit,dora,adalora,full
# Without dropout; and with adapters in bfloat16 as DeepSpeed has them, where fusing can save the least.
measure --ways lora,beamlora,limit
measure --adapters base --ways lora,beamlora,limit
# With what lies around the layers, on padded examples of which a quarter is the answer.
around=beamlora,beamlora+counted,beamlora+packed,beamlora+adamw,beamlora+counted+packed+adamw
measure --varied --answer 0.25 --ways "lora,$around,limit+counted+packed"
# If time is left.
measure --dropout 0.05 --checkpointing --ways lora,beamlora,limit
echo "written: $json, $text"

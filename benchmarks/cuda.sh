#!/usr/bin/env bash
# What can be checked where an NVIDIA card is at hand, in one line: bash benchmarks/cuda.sh [DEVICE] [MODEL]
# Agreement of both backends on the card, a short learning run, a real model's tokens a second and memory.
set -euo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda} model=${2:-smollm2}
make install-dev install-torch
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
SDPO_TEST_DEVICE=$device .venv/bin/python -m pytest tests/numerics
out=$(mktemp -d)
.venv/bin/sdpo train --model tiny --task tiny --backend torch --set "model.device=$device" --plain \
  --out "$out/tiny" --require-gain 30
[ "$model" = smollm2 ] && .venv/bin/sdpo models fetch smollm2
.venv/bin/sdpo train --model "$model" --task math:easy --backend torch --set "model.device=$device" --plain \
  --steps 4 --set eval.problems=8 --set eval.samples=1 --set rollout.problems_per_step=4 --out "$out/real"
.venv/bin/python - "$out/real/events.jsonl" <<'PY'
import json
import sys

steps = [e for line in open(sys.argv[1], encoding="utf-8") if (e := json.loads(line))["type"] == "step"]
for e in steps:
    figures = {n: round(v, 2) for n, v in e.items() if n.startswith(("time/", "tokens/"))}
    print(e["step"], figures, f"peak {e.get('memory/peak', 0) / 2**30:.2f} GiB")
PY

#!/usr/bin/env bash
# What can be checked where an NVIDIA card is at hand, in one line: bash benchmarks/cuda.sh [DEVICE]
#
# Runs the documented commands of PyTorch on a card; a part that fails does not end the others, and a report follows.
# `bash benchmarks/cuda.sh cpu` runs every part in small on the CPU. Environment: SKIP_INSTALL=1 (use .venv as it is),
# PARTS="doctor tiny" (only these), MODEL=qwen (of the part `documented`, 8 GB), OUT=DIR (logs and runs).
set -uo pipefail
cd "$(dirname "$0")/.."
device=${1:-cuda}
out=${OUT:-$(mktemp -d)}
mkdir -p "$out"
python=.venv/bin/python
sdpo="$python -m sdpo_cli.main"
report=()
failed=0
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-4} NO_COLOR=1

# part NAME COMMAND...: run it, keep its output, remember how it ended. $shown is printed in place of the command.
part() {
  local name=$1 begun=$SECONDS code=0 what=${shown:-${*:2}}
  shift
  if [[ -n ${PARTS:-} && " $PARTS " != *" $name "* ]]; then return; fi
  echo "== $name: $what"
  timeout "${SECONDS_A_PART:-3600}" "$@" >"$out/$name.log" 2>&1 || code=$?
  tail -n 12 "$out/$name.log" | sed 's/^/   /'
  [[ $code == 0 ]] || failed=$((failed + 1))
  report+=("$(printf '%-12s %-6s %5ds  %s' "$name" "$([[ $code == 0 ]] && echo ok || echo "NO $code")" $((SECONDS - begun)) "$what")")
}

skip() {
  if [[ -n ${PARTS:-} && " $PARTS " != *" $1 "* ]]; then return; fi
  report+=("$(printf '%-12s %-6s %6s  %s' "$1" skip - "$2")")
}

# train NAME OPTIONS...: a run on this device, then the time, tokens a second and memory of its steps.
train() {
  local name=$1
  shift
  shown="sdpo train --backend torch $*" part "$name" bash -c '"$@" && '"$python benchmarks/cuda_figures.py steps '$out/runs/$name'" _ \
    $sdpo train --backend torch --set "model.device=$device" --plain --out "$out/runs/$name" "$@"
}

[[ -n ${SKIP_INSTALL:-} ]] || make install-dev install-torch || exit 1
small=(--steps 2 --set eval.problems=4 --set eval.samples=1 --set rollout.problems_per_step=2)
small+=(--set train.probe=false --set log.teacher_answers=0)

[[ $device == cpu ]] && memory=64GB || memory=24GB

part doctor $sdpo doctor
part alias $sdpo models check qwen --backend torch
part plan $sdpo plan --model qwen --backend torch --set "model.device=$device" --memory "$memory"
if [[ $device == cpu ]]; then
  part agreement $python -m pytest -q -p no:cacheprovider tests/numerics/test_step_gradients.py \
    -k "dual_clip or factors"
  part bfloat16 $python -m pytest -q -p no:cacheprovider tests/unit/backends/test_torch_checks.py \
    -k bfloat16
  train tiny --model tiny --task tiny "${small[@]}"
  train real --model tiny --task tiny "${small[@]}" --set model.dtype=bfloat16
  train bits4 --model tiny --task tiny "${small[@]}" --set model.bits=4
  train long --model tiny --task tiny "${small[@]}" --max-tokens 48 --set train.micro_batch_tokens=64
  train rows --model tiny --task tiny "${small[@]}" --group-size 40 --set rollout.concurrency=80 --max-tokens 8
  skip documented "needs a card: sdpo train --model ${MODEL:-qwen} --task code --backend torch"
  cards=2 ranks_model=tiny ranks_task=tiny
  part launches $python benchmarks/cuda_figures.py launches tiny cpu
else
  part agreement env SDPO_TEST_DEVICE="$device" $python -m pytest -q -p no:cacheprovider tests/numerics
  part bfloat16 env SDPO_TEST_DEVICE="$device" $python -m pytest -q -p no:cacheprovider \
    tests/unit/backends tests/numerics -k "bfloat16 or 16_bits"
  train tiny --model tiny --task tiny --require-gain 30
  part fetch $sdpo models fetch smollm2
  real=(--model smollm2 --task math:easy --steps 4 --set eval.problems=8 --set eval.samples=1)
  train real "${real[@]}"
  train bits4 "${real[@]}" --set model.bits=4
  # One rollout alone may exceed a pass: a step must become smaller, or be computed again, not end the run.
  train long "${real[@]}" --max-tokens 8192 --set train.micro_batch_tokens=131072 --set train.grad_checkpoint=false
  train rows "${real[@]}" --group-size 32 --set rollout.concurrency=256
  train documented --model "${MODEL:-qwen}" --task code --steps 2 --set eval.problems=8 --set eval.samples=1
  cards=$($python -c "import torch; print(torch.cuda.device_count())" || echo 0)
  ranks_model=smollm2 ranks_task=math:easy
  part launches $python benchmarks/cuda_figures.py launches smollm2 "$device"
fi
if ((cards >= 2)); then
  part ranks $python -m torch.distributed.run --standalone --nproc-per-node 2 -m sdpo_cli.main train --backend torch \
    --set "model.device=$device" --plain --out "$out/runs/ranks" --model "$ranks_model" --task "$ranks_task" "${small[@]}"
  if [[ $device != cpu ]]; then
    # One rank more than cards must be refused at the start, by all ranks.
    part too-many bash -c '! "$@"' _ $python -m torch.distributed.run --standalone --nproc-per-node $((cards + 1)) \
      -m sdpo_cli.main train --backend torch --plain --out "$out/runs/too-many" --model tiny --task tiny
  fi
else
  skip ranks "needs two cards, here are $cards"
fi

echo
printf '%s\n' "${report[@]}"
echo "logs and runs: $out"
exit $((failed > 0))

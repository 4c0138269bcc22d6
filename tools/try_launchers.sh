#!/usr/bin/env bash
# Tries the launchers of this machine on four processes that train a tiny model on the CPU, as no test with a faked
# environment can:
#
#   tools/try_launchers.sh build/agoq [openmpi|mpich|torchrun|srun ...]     without names: those that are installed
#
# Each must finish with the losses of one process; end by itself when a process is killed; save when it, or one of its
# processes, is told to stop; and go on from there. srun needs a cluster that runs and sees this folder and the
# temporary one. OPENMPI, MPICH, TORCHRUN and SRUN may hold more options, such as SRUN="--overlap". Programs are called as
# Debian calls them, and all ranks run on this host: processes are found and killed here. It fails if one does, and if
# none was tried.

# shellcheck disable=SC2317 # functions are called by name, through check and await
set -euo pipefail

if [[ $# == 0 ]]; then
  echo "usage: tools/try_launchers.sh AGOQ [openmpi|mpich|torchrun|srun ...]" >&2
  exit 2
fi
agoq=$(realpath -e "$1")
shift
folder=$(mktemp -d "${TMPDIR:-/tmp}/launchers.XXXXXX")
trap 'stop_all; rm -rf "$folder"' EXIT

declare -A program=(
  [openmpi]="mpirun.openmpi --oversubscribe --allow-run-as-root -np 4 ${OPENMPI-}"
  [mpich]="mpiexec.mpich -n 4 ${MPICH-}"
  [torchrun]="torchrun --no_python --nproc_per_node 4 ${TORCHRUN-}"
  [srun]="srun -n 4 --kill-on-bad-exit=1 ${SRUN-}"
)
# What the launcher passes on to its processes, and then waits for them.
declare -A stop_by=([openmpi]=USR1 [mpich]=USR1 [torchrun]=TERM [srun]=USR1)

cat >"$folder/model.json" <<'EOF'
{"model_type": "llama", "vocab_size": 257, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 4,
 "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128, "rms_norm_eps": 1e-5,
 "tie_word_embeddings": false}
EOF
for ((i = 0; i < 1000; ++i)); do echo "the cat sat on the mat and looked at line $((i * i % 97))."; done >"$folder/text.txt"

# Of a run: its folder's name, its steps, and more settings.
train() {
  local name=$1 steps=$2
  shift 2
  echo "$agoq" train --device cpu --threads 1 --model-config "$folder/model.json" --data-path "$folder/text.txt" \
    --seq-length 32 --micro-batch-size 1 --global-batch-size 8 --lr 5e-3 --lr-decay-style constant --baseline fp32 \
    --log-interval 10 --sample-tokens 0 --save "$folder/$name" --train-iters "$steps" "$@"
}

processes() { pgrep -f "^$agoq train .*$folder/" || true; }
stop_all() { for id in $(processes); do kill -KILL "$id" || true; done; }

# Within two minutes, or the trial has failed.
await() {
  for ((i = 0; i < 600; ++i)); do
    if "$@"; then return; fi
    sleep 0.2
  done
  return 1
}
trains() { grep -qs '| loss' "$folder/log"; }
all_gone() { [[ -z $(processes) ]]; }

losses() { sed -nE 's/.*"step": *([0-9]+).*"loss": *([0-9.]+).*/\1 \2/p;' "$folder/$1/metrics.jsonl"; }
same_losses() {
  paste <(losses alone) <(losses run) | awk '$1 != $3 || ($2 - $4) ^ 2 > 1e-8 { bad = 1 } END { exit bad || NR != 4 }'
}

failed=0
check() {
  local what=$1
  shift
  if "$@"; then
    echo "  ok      $what"
  else
    echo "  FAILED  $what"
    sed 's/^/          /' "$folder/log" | tail -n 12
    failed=1
  fi
}
says() { grep -qE "$1" "$folder/log"; }
status_is() { [[ $status == "$1" ]]; }
fails() { [[ $status != 0 ]]; }

start() { # LAUNCHER STEPS
  rm -f "$folder/log"
  # shellcheck disable=SC2046,SC2086
  ${program[$1]} $(train run "$2" --tensor-model-parallel-size 2) >"$folder/log" 2>&1 &
  launcher=$!
}
finish() {
  status=0
  wait "$launcher" || status=$?
}

# A run without end, which something is done to while it trains.
disturb() { # LAUNCHER COMMAND...
  start "$1" 1000000
  shift
  if ! await trains; then
    echo "  it does not train"
    kill "$launcher"
  else
    "$@"
  fi
  finish
  await all_gone || true
}
signal_one() { kill "-$1" "$(processes | tail -n 1)"; }
signal_launcher() { kill "-$1" "$launcher"; }

try() {
  echo "$1: $(${program[$1]%% *} --version 2>/dev/null | grep -m 1 -oE '[0-9]+\.[0-9.]+')"
  rm -rf "$folder/run"
  start "$1" 4
  finish
  check "finishes" status_is 0
  check "with the losses of one process" same_losses

  rm -rf "$folder/run"
  disturb "$1" signal_one KILL
  check "fails when a process is killed" fails
  check "and says so" says 'rank [0-3] is gone|EXIT CODE: 9' # MPICH's mpiexec is faster than the ranks
  check "and leaves none behind" all_gone

  rm -rf "$folder/run"
  disturb "$1" signal_one TERM
  check "is saved by SIGTERM to a process, and ends well" status_is 0
  check "and says so" says 'stopped by a signal'

  disturb "$1" signal_launcher "${stop_by[$1]}"
  check "goes on" says 'resumed from'
  check "is saved by SIG${stop_by[$1]} to the launcher (status $status)" says 'stopped by a signal'
  check "and leaves none behind" all_gone
}

# shellcheck disable=SC2046,SC2091
$(train alone 4) >"$folder/log" 2>&1
[[ $# -gt 0 ]] || set -- openmpi mpich torchrun srun
tried=0
for launcher_name in "$@"; do
  if [[ ! -v program[$launcher_name] ]]; then
    echo "$launcher_name: not one of ${!program[*]}" >&2
    exit 2
  elif command -v "${program[$launcher_name]%% *}" >/dev/null; then
    try "$launcher_name"
    tried=1
  else
    echo "$launcher_name: not installed"
  fi
done
exit $((failed || !tried))

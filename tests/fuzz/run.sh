#!/usr/bin/env bash
# Runs every fuzzer for a number of seconds:  tests/fuzz/run.sh SECONDS BUILD_DIR [NAME...]
# What a fuzzer learns stays in BUILD_DIR/corpus/NAME; an input that breaks something is left in BUILD_DIR/crashes/NAME.
set -euo pipefail

if [[ $# -lt 2 ]]; then
  echo "usage: $0 SECONDS BUILD_DIR [NAME...]" >&2
  exit 2
fi
duration=$1
build=$2
shift 2
here=$(cd "$(dirname "$0")" && pwd)

names=("$@")
if [[ ${#names[@]} -eq 0 ]]; then
  for source in "$here"/fuzz_*.cc; do
    name=${source##*/fuzz_}
    names+=("${name%.cc}")
  done
fi

for name in "${names[@]}"; do
  fuzzer="$build/tests/fuzz/fuzz_$name"
  if [[ ! -x $fuzzer ]]; then
    echo "no fuzzer $fuzzer; build the target 'fuzzers' first" >&2
    exit 2
  fi
  corpus="$build/corpus/$name"
  crashes="$build/crashes/$name"
  mkdir -p "$corpus" "$crashes"
  # One input may take 2 s of CPU time (input_limit.h); -timeout is for those that never end, on a busy machine too.
  options=(-max_total_time="$duration" -max_len=65536 -timeout=10 -rss_limit_mb=2048 -artifact_prefix="$crashes/"
           -print_final_stats=1 -verbosity=0)
  [[ -f $here/seeds/$name.dict ]] && options+=(-dict="$here/seeds/$name.dict")
  folders=("$corpus")
  [[ -d $here/seeds/$name ]] && folders+=("$here/seeds/$name")
  echo "== fuzz_$name for $duration s"
  "$fuzzer" "${options[@]}" "${folders[@]}"
done

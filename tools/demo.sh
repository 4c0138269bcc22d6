#!/usr/bin/env bash
# What `make demo` runs once all is built: a small LLaMA learns a text.  tools/demo.sh [TEXT] [FLAG...]
set -euo pipefail
cd "$(dirname "$0")/.."

text=${1:-runs/demo-text.txt}
shift || true
[[ $text != runs/demo-text.txt ]] || tools/demo_text.sh "$text"
# Another text than last time begins anew; what was learned before is kept beside it.
if [[ -e runs/demo/config.toml ]] && ! grep -qF "\"$(realpath -s "$text")\"" runs/demo/config.toml; then
  mv runs/demo "runs/demo-until-$(date +%Y%m%d-%H%M%S)"
fi
# As many of 400 steps as end in time, with warm-up and decay to fit: the speed of the first ones tells how many.
exec build/agoq train --config examples/demo.toml --train-iters 400 --lr-warmup-iters 40 --train-minutes 2 \
  --data-path "$text" --save runs/demo "$@"

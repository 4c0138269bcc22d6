#!/usr/bin/env bash
# Writes about 4 MB of English as one UTF-8 file, the King James Bible of Debian's bible-kjv:  tools/demo_text.sh OUTPUT
# A verse is a line; chapters are divided by an empty line.
set -euo pipefail

output=${1:?usage: tools/demo_text.sh OUTPUT}
[[ ! -s $output ]] || exit 0
if ! command -v bible >/dev/null; then
  echo "The demo's text comes with the package bible-kjv: tools/install.sh demo, or pass your own: make demo TEXT=FILE" >&2
  exit 1
fi
mkdir -p "$(dirname "$output")"
# Lines come as "Ge1:1 In the beginning ...".
bible -f 'Gen1:1-Rev22:21' </dev/null |
  awk '{ split($1, place, ":"); if (NR > 1 && place[1] != last) print ""; last = place[1]; sub(/^[^ ]+ /, ""); print }' \
    >"$output.partial"
mv "$output.partial" "$output"

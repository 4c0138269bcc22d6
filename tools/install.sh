#!/usr/bin/env bash
# Installs the Debian or Ubuntu packages that are missing:  tools/install.sh [program] [build] [demo] [check] ...
# Needs root or sudo without a password; otherwise it prints the command to run and fails.
set -euo pipefail

# a|b: the first that is installed, or else the first that this distribution has. a|: unneeded where there is none.
declare -A packages=(
  # What the program is built from; `build` adds tests, benchmarks and Python.
  [program]="g++ cmake ninja-build pkg-config ccache libopenblas-openmp-dev|libopenblas-dev libfmt-dev libspdlog-dev
    nlohmann-json3-dev libcli11-dev libssl-dev libxxhash-dev libtomlplusplus-dev"
  [demo]="bible-kjv"
  # One version of clang everywhere: formatting and static checks differ from version to version.
  [check]="clang-14|clang clang-tidy-14|clang-tidy clang-format-14|clang-format llvm-14|llvm
    libclang-rt-14-dev|libclang-rt-dev| libomp-14-dev|libomp-dev shellcheck"
)
packages[build]="${packages[program]} libgtest-dev libgmock-dev libbenchmark-dev python3 python3-venv"

groups=("$@")
[[ ${#groups[@]} -gt 0 ]] || groups=(build)
wanted=()
for group in "${groups[@]}"; do
  if [[ -z ${packages[$group]:-} ]]; then
    echo "tools/install.sh: no group '$group'; there are: ${!packages[*]}" >&2
    exit 2
  fi
  read -r -d '' -a names <<<"${packages[$group]}" || true
  wanted+=("${names[@]}")
done

if ! command -v dpkg-query >/dev/null || ! command -v apt-get >/dev/null; then
  echo "Not a Debian or Ubuntu system: install the counterparts of these packages if the build misses them:" >&2
  echo "  ${wanted[*]}" >&2
  exit 0
fi

declare -A installed=()
while read -r status name; do
  [[ $status != i* ]] || installed[$name]=1
done < <(dpkg-query -W -f='${db:Status-Abbrev} ${Package}\n')

known() { [[ -n $(apt-cache madison "$1" 2>/dev/null) ]]; }

missing=()
for entry in "${wanted[@]}"; do
  read -r -a choices <<<"${entry//|/ }"
  found=""
  for name in "${choices[@]}"; do found+=${installed[$name]:-}; done
  # With lists at hand (apt itself is in them), a dispensable package that is in none does not exist here.
  if [[ -z $found && $entry == *"|" ]] && known apt && ! known "${choices[0]}" && ! known "${choices[-1]}"; then continue; fi
  [[ -n $found ]] || missing+=("$entry")
done
[[ ${#missing[@]} -gt 0 ]] || exit 0

as_root=()
if [[ $EUID -ne 0 ]]; then
  as_root=(sudo -n)
  sudo -n true 2>/dev/null || as_root=()
fi
can_install=$([[ $EUID -eq 0 || ${#as_root[@]} -gt 0 ]] && echo yes || echo no)
if [[ $can_install == yes ]]; then
  echo "Missing Debian packages: ${missing[*]}" >&2
  "${as_root[@]}" apt-get update -q >/dev/null || echo "warning: apt-get update failed, trying with the lists at hand" >&2
fi

chosen=()
for entry in "${missing[@]}"; do
  read -r -a choices <<<"${entry//|/ }"
  pick=""
  for name in "${choices[@]}"; do
    if [[ -z $pick ]] && known "$name"; then pick=$name; fi
  done
  if [[ -z $pick && $entry == *"|" ]]; then continue; fi
  chosen+=("${pick:-${choices[0]}}")
done
[[ ${#chosen[@]} -gt 0 ]] || exit 0

if [[ $can_install == no ]]; then
  echo "These packages are missing, and installing them needs root. Run this, then the same make again:" >&2
  echo "  sudo apt-get update && sudo apt-get install -y --no-install-recommends ${chosen[*]}" >&2
  echo "(libraries that come from elsewhere, such as modules of a cluster: make INSTALL=no)" >&2
  exit 1
fi
"${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get install -y -q --no-install-recommends \
  -o DPkg::Lock::Timeout=120 "${chosen[@]}" </dev/null

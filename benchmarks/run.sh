#!/bin/sh
# Everything that is measured on a CPU, library and peers side by side, on whatever machine this is. Leave the machine
# alone meanwhile: a second busy program makes every number wrong.
#   sh benchmarks/run.sh [--python PYTHON] [--its-torch] [--steps N] [--rounds N] [--step-only]
#     --python     interpreter whose PyTorch the peers run on (default: python3)
#     --its-torch  build the library against that PyTorch's LibTorch too, instead of the system's
#     --step-only  only whole training steps beside the peers
set -eu
cd "$(dirname "$0")/.."
python=python3
steps=9
rounds=3
its_torch=""
all=yes
while [ $# -gt 0 ]; do
  case "$1" in
    --python) python=$2; shift ;;
    --steps) steps=$2; shift ;;
    --rounds) rounds=$2; shift ;;
    --its-torch) its_torch=yes ;;
    --step-only) all="" ;;
    *) echo "benchmarks/run.sh: unknown option $1" >&2; exit 2 ;;
  esac
  shift
done
threads=$(nproc)
peers="plain compiled"
if ! reason=$("$python" -c 'import torch' 2>&1); then
  echo "benchmarks/run.sh: no peers, as $python cannot import torch ($(echo "$reason" | tail -1)); see --python" >&2
  [ -z "$its_torch" ] || exit 2
  peers=""
fi
build=build/benchmarks
prefix=""
if [ -n "$its_torch" ]; then
  folder=$("$python" -c 'import os, torch; print(os.path.dirname(torch.__file__))')
  prefix="-DCMAKE_PREFIX_PATH=$folder -DCMAKE_EXE_LINKER_FLAGS=-Wl,--allow-shlib-undefined"
  build=build/benchmarks-python
  # Wheels with CUDA keep its libraries in folders of their own.
  LD_LIBRARY_PATH=$(find "$folder/../nvidia" -type d -name lib 2>/dev/null | tr '\n' ':')${LD_LIBRARY_PATH:-}
  export LD_LIBRARY_PATH
fi
# shellcheck disable=SC2086
cmake -S . -B $build -DCMAKE_BUILD_TYPE=Release -DMIXMATCH_BUILD_TESTS=OFF -DMIXMATCH_BUILD_EXAMPLES=OFF $prefix >/dev/null
cmake --build $build -j "$threads" >/dev/null

results=$(mktemp)
trap 'rm -f "$results" "$results.peer"' EXIT
echo "== Whole steps: WRN-28-2, batch 64, K 2; $rounds rounds in turn"
for round in $(seq "$rounds"); do
  for peer in $peers; do
    if "$python" benchmarks/peer/${peer}_pytorch.py --threads "$threads" --steps "$steps" >"$results.peer"; then
      tee -a "$results" <"$results.peer"
    else
      echo "no result of the $peer PyTorch loop with $python" >&2
    fi
  done
  if [ "$round" = 1 ]; then
    $build/benchmarks/step_bench --threads "$threads" --steps "$steps"
  fi
  $build/benchmarks/step_bench --threads "$threads" --steps "$steps" --only "the library" | tee -a "$results" | tail -2
done
awk '
  function median(list, n, v, i, j, t) {
    n = split(list, v, " ")
    for (i = 1; i <= n; ++i) for (j = i + 1; j <= n; ++j) if (v[j] + 0 < v[i] + 0) { t = v[i]; v[i] = v[j]; v[j] = t }
    return v[int((n + 1) / 2)]
  }
  /PyTorch .*median/ { name = $1 " PyTorch loop"; match($0, /median [0-9.]+/); time[name] = time[name] " " substr($0, RSTART + 7, RLENGTH - 7) }
  /= the library in/ { name = "mixmatch, " ($0 ~ /in bf16/ ? "bf16" : "fp32"); sub(/.*the library in (bf16|fp32) */, ""); time[name] = time[name] " " $1 }
  END {
    plain = median(time["plain PyTorch loop"])
    print "\nmedian of the rounds, seconds a step, and share of the plain loop:"
    for (name in time) printf "  %-24s %.4f  %s\n", name, median(time[name]), (plain > 0 ? sprintf("%.3f", median(time[name]) / plain) : "-")
  }' "$results"
[ -n "$all" ] || exit 0
printf '\n== Scaling\n'
$build/benchmarks/step_bench --threads "$threads" --steps 5 --scaling
printf '\n== Kernels\n'
$build/benchmarks/mixmatch_benchmarks
if "$python" -c 'import numpy, PIL' 2>/dev/null; then
  "$python" benchmarks/peer/pillow_rand_augment.py
  "$python" benchmarks/peer/pillow_rand_augment.py --processes "$threads"
else
  echo "no Pillow beside rand_augment: $python cannot import numpy and PIL"
fi
printf '\n== Compile time\n'
if [ -n "$its_torch" ]; then
  TORCH=$folder sh benchmarks/compile_time.sh
else
  sh benchmarks/compile_time.sh
fi

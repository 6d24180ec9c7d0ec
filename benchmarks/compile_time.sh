#!/bin/sh
# Compile time of a file that includes torch/torch.h, the umbrella header (which needs less of LibTorch), or both: medians
# of CPU seconds, the three taking turns.
#   sh benchmarks/compile_time.sh [ROUNDS]        CXX, CXXFLAGS and TORCH (a LibTorch folder) from the environment
set -eu
cd "$(dirname "$0")/.."
rounds=${1:-5}
work=$(mktemp -d)
trap 'rm -r "$work"' EXIT
torch=${TORCH:-/usr}
compiler=${CXX:-g++}
printf '#include <torch/torch.h>\n' >"$work/torch.cpp"
printf '#include <mixmatch/mixmatch.hpp>\n' >"$work/mixmatch.cpp"
cat "$work/torch.cpp" "$work/mixmatch.cpp" >"$work/both.cpp"
export CCACHE_DISABLE=1
includes="-isystem $torch/include/torch/csrc/api/include"
if [ "$torch" != /usr ]; then  # which the compiler searches by itself, and in its own order
  includes="-isystem $torch/include $includes"
fi
# seconds SOURCE: user and system time of one compilation.
seconds() {
  # shellcheck disable=SC2086
  ( $compiler -std=c++20 ${CXXFLAGS:--O2} -DFMT_HEADER_ONLY -Iinclude $includes -c "$work/$1.cpp" -o /dev/null
    times ) >"$work/times"
  awk 'NR == 2 { split($1, u, /[ms]/); split($2, s, /[ms]/); print 60 * (u[1] + s[1]) + u[2] + s[2] }' "$work/times"
}
for _ in $(seq "$rounds"); do
  for source in torch mixmatch both; do
    seconds "$source" >>"$work/$source.times"
  done
done
median() { sort -n "$1" | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }
echo "$($compiler --version | head -1), ${CXXFLAGS:--O2}, medians of $rounds"
awk -v torch="$(median "$work/torch.times")" -v umbrella="$(median "$work/mixmatch.times")" -v both="$(median "$work/both.times")" '
  function line(name, seconds) { printf "%-44s %.1f s  %+.1f %%\n", name, seconds, 100 * (seconds / torch - 1) }
  BEGIN {
    printf "%-44s %.1f s\n", "torch/torch.h", torch
    line("mixmatch/mixmatch.hpp", umbrella)
    line("torch/torch.h and mixmatch/mixmatch.hpp", both)
  }'

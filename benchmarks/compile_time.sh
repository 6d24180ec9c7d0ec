#!/bin/sh
# Compile time of a file that includes torch/torch.h, the umbrella header (which needs less of LibTorch), both umbrellas,
# or torch/torch.h and the umbrella: medians and fastest of CPU seconds, the four taking turns.
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
printf '#include <mixmatch/mixmatch.hpp>\n#include <mixmatch/training.hpp>\n' >"$work/training.cpp"
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
  for source in torch mixmatch training both; do
    seconds "$source" >>"$work/$source.times"
  done
done
# A line of the table: time and share over that of torch/torch.h, by medians and by the fastest.
line() {
  sort -n "$work/$2.times" | awk -v name="$1" -v base="$(sort -n "$work/torch.times" | tr '\n' ' ')" '
    { v[NR] = $1 }
    END {
      split(base, b, " "); m = int((NR + 1) / 2)
      printf "%-47s %5.1f s  %+6.1f %%   %5.1f s  %+6.1f %%\n", name, v[m], 100 * (v[m] / b[m] - 1), v[1], 100 * (v[1] / b[1] - 1)
    }'
}
echo "$($compiler --version | head -1), ${CXXFLAGS:--O2}, $rounds rounds"
printf '%-47s %-20s  %s\n' "" median fastest
line torch/torch.h torch
line mixmatch/mixmatch.hpp mixmatch
line "mixmatch/mixmatch.hpp and mixmatch/training.hpp" training
line "torch/torch.h and mixmatch/mixmatch.hpp" both

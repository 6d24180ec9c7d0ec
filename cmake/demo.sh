#!/bin/sh
# Installs what is missing, builds the quick start, and trains: supervised-only against MixMatch with 40 labels.
. "$(dirname "$0")/setup.sh"
# shellcheck disable=SC2086
need $toolchain cmake ninja-build libfmt-dev libcli11-dev
cmake -S . -B build/demo -G Ninja -DCMAKE_BUILD_TYPE=Release -DMIXMATCH_BUILD_TESTS=OFF -DMIXMATCH_BUILD_BENCHMARKS=OFF \
  -DMIXMATCH_INSTALL=OFF >/dev/null
cmake --build build/demo --target quickstart -j "$jobs"
exec build/demo/examples/quickstart "$@"

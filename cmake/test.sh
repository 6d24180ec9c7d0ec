#!/bin/sh
# Installs what is missing, builds everything, and runs the whole test suite.
. "$(dirname "$0")/setup.sh"
need g++ cmake ninja-build libtorch-dev libfmt-dev libcli11-dev libmatio-dev libstb-dev catch2
cmake -S . -B build/test -G Ninja -DCMAKE_BUILD_TYPE=Release
cmake --build build/test -j "$jobs"
exec ctest --test-dir build/test --output-on-failure "$@"

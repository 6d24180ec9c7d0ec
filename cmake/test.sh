#!/bin/sh
# Installs what is missing, builds the library's programs and tests, and runs the whole test suite.
#   --with-python    also the tests that exchange files with Python's packages (cmake/python_env.sh)
#   --with-browser   also the tests that look at pages in Chromium
#   --with-headers   also compiles each public header alone
#   --with-benchmarks   also builds the benchmarks, without running them
#   --with-fuzz      also builds tests/fuzz, which compiles for minutes, and runs each of its targets for a moment
#   --werror         warnings in the project's own code are errors
# Other arguments go to ctest. Tests that were skipped are listed at the end with their reasons.
. "$(dirname "$0")/setup.sh"
python=""
browser=""
headers=OFF
benchmarks=OFF
fuzz=OFF
werror=OFF
for argument in "$@"; do
  shift
  case "$argument" in
    --with-python) python=$(sh cmake/python_env.sh) ;;
    --with-browser) browser=chromium ;;
    --with-headers) headers=ON ;;
    --with-benchmarks) benchmarks=ON ;;
    --with-fuzz) fuzz=ON ;;
    --werror) werror=ON ;;
    *) set -- "$@" "$argument" ;;
  esac
done
# shellcheck disable=SC2086
need $toolchain cmake ninja-build libfmt-dev libcli11-dev libmatio-dev libjpeg-dev libpng-dev libwebp-dev \
  libtiff-dev libgloo-dev catch2 $browser
# The examples are built once, by a test: as a user builds them.
cmake -S . -B build/test -G Ninja -DCMAKE_BUILD_TYPE=Release -DMIXMATCH_BUILD_EXAMPLES=OFF -DMIXMATCH_BUILD_BENCHMARKS=$benchmarks \
  -DMIXMATCH_UNITY_TESTS=ON -DMIXMATCH_WERROR=$werror -DMIXMATCH_BUILD_FUZZ=$fuzz -DMIXMATCH_HEADERS_ALONE=$headers -DMIXMATCH_PYTHON="$python"
cmake --build build/test -j "$jobs"
status=0
ctest --test-dir build/test -j "$jobs" --output-on-failure "$@" || status=$?
# ctest names the tests that it skipped, but not why.
sed -n -e 's/^[0-9]*\/[0-9]* Testing: /test /p' -e '/^SKIPPED: /p' build/test/Testing/Temporary/LastTest.log |
  awk '/^SKIPPED: / { reason = test ": " $0; if (!(reason in seen)) print reason; seen[reason] = 1; next }
       { test = $2 }'
exit "$status"

# Sourced by demo.sh and test.sh (Debian and Ubuntu).
set -eu
cd "$(dirname "$0")/.."

# need PACKAGE…: installs those that are missing, and says so first.
need() {
  missing=""
  for package in "$@"; do
    dpkg-query -W -f='${Status}' "$package" 2>/dev/null | grep -q 'install ok installed' || missing="$missing $package"
  done
  if [ -z "$missing" ]; then
    return
  fi
  if ! command -v apt-get >/dev/null; then
    echo "apt-get is not here; please install by hand:$missing" >&2
    exit 1
  fi
  echo "Installing with apt-get:$missing"
  sudo=""
  if [ "$(id -u)" -ne 0 ]; then
    sudo="sudo"
  fi
  $sudo apt-get update -qq
  # shellcheck disable=SC2086
  $sudo env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $missing >/dev/null
}

# What builds: Debian's packages, or what CXX (a compiler) and CMAKE_PREFIX_PATH (the folder of PyPI's torch) name.
toolchain=""
if [ -z "${CXX:-}" ]; then
  toolchain="g++"
fi
if ! [ -f "${CMAKE_PREFIX_PATH:-}/share/cmake/Torch/TorchConfig.cmake" ]; then
  toolchain="$toolchain libtorch-dev"
fi

# A translation unit with torch.h takes up to 2 GB.
jobs=$(nproc)
fit=$(awk '/MemAvailable/ {print int($2 / 2000000) + 1}' /proc/meminfo)
if [ "$fit" -lt "$jobs" ]; then
  jobs=$fit
fi

#!/bin/sh
# Runs the README's two commands on other systems than this one, and prints a table of what came of them. Each row has
# a folder of its own, a fresh Debian (debootstrap) with that release's compiler, LibTorch and Catch2:
#
#     bookworm, trixie, forky   Debian 12, 13 and testing, as the commands find them
#     pypi                      Debian 13 with clang and the newest LibTorch from PyPI
#
#     sudo sh cmake/matrix.sh [--work DIR] [--setup] [--again] [--fresh] [--ccache] [--mirror URL] [ROW…]
#
#   --work DIR     where the folders and logs are kept (build/matrix)
#   --setup        makes the folders and installs what they need, runs nothing
#   --again        runs rows that have passed at this commit already
#   --fresh        makes the rows' folders anew
#   --ccache       compiles through ccache, kept in DIR/ROW/ccache
#   --mirror URL   Debian's mirror; else the one of this system's apt, or debootstrap's
#
# What is tested is the last commit, not what is uncommitted. Needs root (chroot, mounts in a namespace of its own), 3 GB
# of disk a row (pypi: 14 GB), and the network; installs debootstrap here when it is missing. A row that was interrupted
# is run again by the same command; rows that have passed at this commit are not.
. "$(dirname "$0")/setup.sh"

fail() {
  echo "matrix.sh: $1" >&2
  exit 2
}

work=build/matrix
setup_only="" again="" fresh="" ccache="" mirror="" rows=""
while [ $# -gt 0 ]; do
  case "$1" in
    --work | --mirror)
      [ $# -gt 1 ] || fail "$1 needs a value"
      if [ "$1" = --work ]; then work=$2; else mirror=$2; fi
      shift
      ;;
    --setup) setup_only=yes ;;
    --again) again=yes ;;
    --fresh) fresh=yes ;;
    --ccache) ccache=yes ;;
    bookworm | trixie | forky | pypi) rows="$rows $1" ;;
    *) fail "unknown argument $1; expected --work DIR, --setup, --again, --fresh, --ccache, --mirror URL, bookworm, trixie, forky or pypi" ;;
  esac
  shift
done
rows=${rows:-bookworm trixie forky pypi}
[ "$(id -u)" -eq 0 ] || fail "needs root, for chroot and mounts"
need debootstrap git
mkdir -p "$work"
work=$(cd "$work" && pwd)
exec 9>"$work/lock"
flock -n 9 || fail "another matrix.sh is at work in $work"
commit=$(git rev-parse --short=10 HEAD)
[ -z "$(git status --porcelain)" ] || echo "Uncommitted changes are not tested, only commit $commit"

if [ -z "$mirror" ] && command -v apt-get >/dev/null; then
  mirror=$(apt-get indextargets --format '$(REPO_URI)' 'Created-By: Packages' | grep -E '/debian/?$' | head -n 1) || mirror=""
fi

# in_row COMMAND: runs it by the shell in the row's folder. What is mounted there is gone with the namespace.
in_row() {
  # shellcheck disable=SC2016
  env -u CC -u CXX -u CFLAGS -u CXXFLAGS -u LDFLAGS -u CMAKE_PREFIX_PATH -u PIP_FIND_LINKS LC_ALL=C.UTF-8 \
    unshare --mount sh -euc '
      root=$1
      mount -t proc proc "$root/proc"
      mount -t sysfs -o ro sysfs "$root/sys"
      mount -t tmpfs tmpfs "$root/dev/shm"
      mkdir -p "$root/dev/pts"
      mount -t devpts -o newinstance,mode=620,ptmxmode=666 devpts "$root/dev/pts"
      mount --bind "$root/dev/pts/ptmx" "$root/dev/ptmx"
      if [ -d "$root/ccache" ]; then
        mount --bind "$root/../ccache" "$root/ccache"
      fi
      exec chroot "$root" sh -euc "$2"
    ' in_row "$root" "$1" 9>&-
}

# copy FILE…: this system's files, those that there are, into the row's folder.
copy() {
  for file in "$@"; do
    if [ -e "$file" ]; then
      cp -L --remove-destination "$file" "$root$file"
    fi
  done
}

# The row's folder, up to what the two commands install themselves.
set_up() {
  if [ -n "$fresh" ]; then
    rm -rf --one-file-system "$root"
  fi
  if [ ! -e "$root/etc/set-up-by-matrix" ]; then
    rm -rf --one-file-system "$root"
    # A release newer than this debootstrap is set up as the unstable one is.
    script=/usr/share/debootstrap/scripts/$release
    [ -e "$script" ] || script=/usr/share/debootstrap/scripts/sid
    unshare --mount debootstrap --variant=minbase "$release" "$root" "$mirror" "$script"
    touch "$root/etc/set-up-by-matrix"
  fi
  # The way to the network is this system's.
  copy /etc/resolv.conf /etc/hosts /etc/pip.conf
  # A mirror may lag behind.
  echo 'Acquire::Check-Valid-Until "false";' >"$root/etc/apt/apt.conf.d/90matrix"
  if command -v apt-config >/dev/null; then
    apt-config dump | sed -n '/^Acquire::https*::Proxy/p' >>"$root/etc/apt/apt.conf.d/90matrix"
  fi
  packages="ca-certificates"
  if [ -n "$ccache" ]; then
    packages="$packages ccache"
    mkdir -p "$work/$row/ccache" "$root/ccache"
  fi
  if [ "$row" = pypi ]; then
    packages="$packages clang python3-venv"
  fi
  in_row "apt-get update -qq
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $packages"
  copy /etc/ssl/certs/ca-certificates.crt
  if [ "$row" = pypi ]; then
    # The CMake files of a wheel with CUDA want a toolkit, found by the usual names: PyPI's is of the same version.
    in_row '[ -x /opt/torch/bin/pip ] || python3 -m venv --clear /opt/torch
      pip="/opt/torch/bin/pip --no-cache-dir --disable-pip-version-check"
      $pip install --upgrade torch
      for toolkit in /opt/torch/lib/python3*/site-packages/nvidia/cu[0-9]*; do
        if [ -d "$toolkit" ]; then
          $pip install "cuda-toolkit[nvcc]"
          for library in "$toolkit"/lib/*.so.*; do
            ln -sf "${library##*/}" "${library%.so.*}.so"
          done
          ln -sfn lib "$toolkit/lib64"
          ln -sfn "$toolkit" /usr/local/cuda
        fi
      done'
  fi
}

# README's commands in a clone of the commit, and a line of the table, fields with tabs between, in DIR/ROW/result.
try_row() {
  rm -rf "$root/src" "$work/$row/result"
  git clone --quiet --no-hardlinks . "$root/src"
  git -C "$root/src" checkout --quiet --detach "$commit"
  settings=""
  if [ "$row" = pypi ]; then
    settings="export PATH=\$PATH:/usr/local/cuda/bin CXX=clang++ CMAKE_PREFIX_PATH=\$(echo /opt/torch/lib/python3*/site-packages/torch)"
  fi
  if [ -n "$ccache" ]; then
    settings="$settings
      export CMAKE_CXX_COMPILER_LAUNCHER=ccache CCACHE_DIR=/ccache
      export CCACHE_SLOPPINESS=pch_defines,time_macros,include_file_mtime,include_file_ctime"
  fi
  begin=$(date +%s)
  demo="fails, see demo.log"
  if in_row "$settings
    cd /src && sh cmake/demo.sh" >"$work/$row/demo.log" 2>&1 </dev/null; then
    demo=$(tail -n 1 "$work/$row/demo.log")
  fi
  tests="fails, see test.log" status=failed
  if in_row "$settings
    cd /src && sh cmake/test.sh" >"$work/$row/test.log" 2>&1 </dev/null; then
    status=passed
  fi
  minutes=$((($(date +%s) - begin + 30) / 60))
  case "$demo" in "test error: "*) ;; *) status=failed ;; esac
  # Each test's own line: the sums are worded differently from one ctest to the next.
  counts=$(awk '/^ *[0-9]+\/[0-9]+ Test +#[0-9]+: / { if (/\*\*\*Skipped/) s++; else if (/ Passed /) p++; else f++ }
    END { if (p + s + f) print p + 0 " passed, " s + 0 " skipped, " f + 0 " failed" }' "$work/$row/test.log")
  tests=${counts:-$tests}
  # shellcheck disable=SC2016
  versions=$(in_row "$settings"'
    cd /src
    . /etc/os-release
    if [ -n "${CXX:-}" ]; then
      compiler=$($CXX --version | sed -n "1s/.*version \([0-9.]*\).*/clang \1/p")
      torch=$(/opt/torch/bin/python3 -c "import importlib.metadata as m; print(m.version(\"torch\"))")
    else
      compiler="g++ $(g++ -dumpfullversion)"
      torch=$(dpkg-query -W -f "\${Version}" libtorch-dev)
    fi
    printf "%s\t%s\t%s\t%s" "$PRETTY_NAME" "${torch%%+*}" "$(dpkg-query -W -f "\${Version}" catch2 | sed "s/-.*//")" "$compiler"
  ' 2>>"$work/$row/test.log") || versions=$(printf '%s\t-\t-\t-' "$release")
  printf '%s\t%s\t%s\t%s\t%s\t%s\t%s\n' "$commit" "$status" "$row" "$versions" "$demo" "$tests" "$minutes" >"$work/$row/result.new"
  mv "$work/$row/result.new" "$work/$row/result"
}

failed=""
for row in $rows; do
  release=$row
  if [ "$row" = pypi ]; then
    release=trixie
  fi
  root=$work/$row/root
  mkdir -p "$work/$row"
  if [ -z "$setup_only$again$fresh" ] && grep -q "^$commit	passed	" "$work/$row/result" 2>/dev/null; then
    echo "$row: has passed at $commit (--again runs it again)"
    continue
  fi
  echo "$row: setting up $root (log: $work/$row/setup.log)"
  # A subshell that is no condition: in one, -e would not count.
  set +e
  (
    set -e
    set_up
  ) >"$work/$row/setup.log" 2>&1 </dev/null
  status=$?
  set -e
  if [ "$status" -ne 0 ]; then
    echo "$row: cannot be set up, see $work/$row/setup.log:" >&2
    tail -n 3 "$work/$row/setup.log" >&2
    failed=yes
    continue
  fi
  if [ -z "$setup_only" ]; then
    echo "$row: running cmake/demo.sh and cmake/test.sh at $commit (logs: $work/$row/demo.log, test.log)"
    try_row
    grep -q "^$commit	passed	" "$work/$row/result" || failed=yes
  fi
done

if [ -z "$setup_only" ]; then
  echo
  echo "| row | system | LibTorch | Catch2 | compiler | cmake/demo.sh | cmake/test.sh | minutes | commit |"
  echo "|---|---|---|---|---|---|---|---|---|"
  for row in $rows; do
    if [ -e "$work/$row/result" ]; then
      awk -F '\t' '{ print "| " $3 " | " $4 " | " $5 " | " $6 " | " $7 " | " $8 " | " $9 " | " $10 " | " $1 " |" }' "$work/$row/result"
    fi
  done
fi
[ -z "$failed" ]

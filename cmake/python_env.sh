#!/bin/sh
# Makes build/python, an environment whose interpreter has torch (Debian's, of the LibTorch version that the library
# is built with), numpy, safetensors, tensorboard, onnxruntime and Pillow: what the tests of MIXMATCH_PYTHON want. Installs what is missing.
# The interpreter's path is the last line on stdout:
#
#     cmake -B build -DMIXMATCH_PYTHON="$(sh cmake/python_env.sh)"
. "$(dirname "$0")/setup.sh"
need python3-torch python3-numpy python3-venv >&2
python="$PWD/build/python/bin/python3"
if ! "$python" -c 'import numpy, onnxruntime, PIL, safetensors.torch, tensorboard, torch' >/dev/null 2>&1; then
  echo "Installing with pip into build/python: safetensors tensorboard pillow onnxruntime" >&2
  # By its path: Debian's packages belong to Debian's interpreter.
  /usr/bin/python3 -m venv --clear --system-site-packages build/python
  "$python" -m pip install --quiet --disable-pip-version-check safetensors tensorboard pillow onnxruntime >&2
  "$python" -c 'import numpy, onnxruntime, PIL, safetensors.torch, tensorboard, torch' >&2
fi
echo "$python"

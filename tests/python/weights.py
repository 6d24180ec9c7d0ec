"""The Python half of python_weights_test.cpp: `weights.py COMMAND ARGUMENT…`, one command a function.

What it expects and what it makes is computed here and again, independently, in C++.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples" / "python"))

import numpy as np
import safetensors.numpy
import safetensors.torch
import torch
from safetensors import safe_open
from torch import nn
from wide_resnet import WideResNet

DTYPES = {
    "f64": torch.float64,
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "i64": torch.int64,
    "i32": torch.int32,
    "i16": torch.int16,
    "i8": torch.int8,
    "u8": torch.uint8,
    "bool": torch.bool,
}
METADATA = {"format": "pt", "note": 'quoted "é" \\ \n \U0001f600'}


def values(dtype: torch.dtype) -> torch.Tensor:
    """[2, 3, 4, 2] numbers that every dtype can hold."""
    numbers = np.arange(48, dtype=np.float64).reshape(2, 3, 4, 2)
    if dtype == torch.bool:
        return torch.from_numpy(numbers % 3 == 0)
    if dtype.is_floating_point:
        numbers = numbers / 4 - 2.5
    return torch.from_numpy(numbers).to(dtype)


def expected() -> dict:
    tensors = {}
    for name, dtype in DTYPES.items():
        tensors[name] = values(dtype)
        tensors[name + ".scalar"] = values(dtype)[1, 2, 3, 1].clone()
        tensors[name + ".empty"] = torch.empty(0, 3, dtype=dtype)
    tensors["name é \n"] = torch.tensor([1.0, 2.0])
    return tensors


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)


def check(path: str) -> None:
    """A file with `expected` from C++, through PyTorch's, the lazy and numpy's interface."""
    wanted = expected()
    found = safetensors.torch.load_file(path)
    assert found.keys() == wanted.keys(), found.keys() ^ wanted.keys()
    for name, tensor in wanted.items():
        assert same(found[name], tensor), (name, found[name], tensor)
    with safe_open(path, framework="pt") as file:
        assert file.metadata() == METADATA, file.metadata()
        assert set(file.keys()) == wanted.keys()
        for name, tensor in wanted.items():
            assert same(file.get_tensor(name), tensor), name
        assert torch.equal(file.get_slice("f32")[1:], wanted["f32"][1:])
    with safe_open(path, framework="np") as file:
        for name, tensor in wanted.items():
            if tensor.dtype != torch.bfloat16:  # which numpy lacks
                array = file.get_tensor(name)
                assert array.dtype == tensor.numpy().dtype and np.array_equal(array, tensor.numpy()), name


def write(torch_path: str, numpy_path: str) -> None:
    safetensors.torch.save_file(expected(), torch_path, metadata=METADATA)
    arrays = {name: tensor.numpy() for name, tensor in expected().items() if tensor.dtype != torch.bfloat16}
    safetensors.numpy.save_file(arrays, numpy_path)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.again = self.first


def shared(from_cpp: str, to_cpp: str) -> None:
    """A module under two names: C++ wrote one with weight 1, 2, … 9 and bias 0.5; this writes their doubles."""
    model = Shared()
    safetensors.torch.load_model(model, from_cpp)
    assert torch.equal(model.again.weight.detach(), torch.arange(1.0, 10).reshape(3, 3))
    assert torch.equal(model.again.bias.detach(), torch.full((3,), 0.5))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2)
    safetensors.torch.save_model(model, to_cpp)


def network() -> WideResNet:
    return WideResNet(num_classes=10, depth=16, widen_factor=2).eval()


def logits(weights: str, images: str, result: str) -> None:
    """The logits of a Wide ResNet that C++ trained, of images that C++ made."""
    model = network()
    model.load_state_dict(safetensors.torch.load_file(weights), strict=True)
    with torch.no_grad():
        safetensors.torch.save_file({"logits": model(safetensors.torch.load_file(images)["images"])}, result)


def make(weights: str, result: str) -> None:
    """A Wide ResNet with batch-norm statistics of its own, and images with their logits."""
    torch.manual_seed(7)
    model = network()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if name.endswith("num_batches_tracked"):
                tensor.fill_(12)
            elif name.endswith(("running_var", "weight")) and tensor.dim() == 1:
                tensor.uniform_(0.5, 1.5)
            elif tensor.dim() == 1:
                tensor.normal_(0, 0.2)
        images = torch.rand(5, 3, 32, 32) * 2 - 1
        safetensors.torch.save_file(model.state_dict(), weights)
        safetensors.torch.save_file({"images": images, "logits": model(images)}, result)


def check_script(script: str, weights: str, images: str, result: str) -> None:
    """A TorchScript file from C++ and its weights: the names are those of the Python module, and give its logits."""
    scripted = torch.jit.load(script)
    assert not scripted.training
    saved = safetensors.torch.load_file(weights)
    state = scripted.state_dict()
    assert saved.keys() == state.keys(), saved.keys() ^ state.keys()
    for name, tensor in state.items():
        assert same(saved[name], tensor.detach()), name
    plain = WideResNet(num_classes=10, depth=10, widen_factor=1)
    plain.load_state_dict(saved, strict=True)
    inputs = safetensors.torch.load_file(images)["images"]
    with torch.no_grad():
        output = scripted(inputs)
        assert torch.allclose(output, plain.eval()(inputs), rtol=1e-5, atol=1e-5)
        safetensors.torch.save_file({"logits": output}, result)


if __name__ == "__main__":
    torch.set_num_threads(2)
    commands = {"check": check, "write": write, "shared": shared, "logits": logits, "make": make}
    commands["check_script"] = check_script
    commands[sys.argv[1]](*sys.argv[2:])

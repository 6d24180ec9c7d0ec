"""Turns published PyTorch weights into safetensors, which the library reads (models::load_pretrained).

    pip install torch safetensors
    python convert_weights.py resnet18-f37072fd.pth resnet18.safetensors

Takes a state dict as torch.save writes it (.pth, .pt, .bin), also one inside a training checkpoint, under
"state_dict", "model" or what --key names. The "module." that DataParallel puts before names is taken off. Tensors keep
their names, shapes and dtypes; what is no tensor is left out and said. The file is read without running code in it,
for which PyTorch must be 1.13 or newer, and 2 or newer for a checkpoint that holds more than tensors and whole numbers.
"""

import argparse
import sys
from collections.abc import Mapping
from typing import NoReturn

import torch
from safetensors.torch import save_file

NESTED = ("state_dict", "model", "model_state_dict", "model_state")


def fail(message: str) -> NoReturn:
    print(f"convert_weights.py: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(2)


def read(path: str):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        fail(f"{path}: {error.strerror or error}")
    except Exception as error:  # each version of torch has its own for a file that is none or holds other objects
        fail(
            f"{path} is no state dict that torch.load(weights_only=True) of PyTorch {torch.__version__} reads "
            f"({type(error).__name__}); of a pickled module or a TorchScript file, save module.state_dict() first"
        )


def state_dict_of(loaded, key, path: str) -> Mapping:
    if key is not None:
        if not isinstance(loaded, Mapping) or not isinstance(loaded.get(key), Mapping):
            known = ", ".join(map(repr, list(loaded)[:10])) if isinstance(loaded, Mapping) else type(loaded).__name__
            fail(f"{path} has no state dict under {key!r}; it holds {known}")
        return loaded[key]
    if not isinstance(loaded, Mapping):
        fail(f"{path} holds a {type(loaded).__name__}, expected a state dict")
    for name in NESTED:
        if isinstance(loaded.get(name), Mapping):
            return state_dict_of(loaded[name], None, path)
    return loaded


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0], epilog="\n\n".join(__doc__.split("\n\n")[1:]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("weights", help="file to read: .pth, .pt or .bin")
    parser.add_argument("out", help="file to write: .safetensors")
    parser.add_argument("--key", help="where in a checkpoint the state dict is, if not under a usual name")
    parser.add_argument("--prefix", default="", help='take the tensors below this name alone, without it: "backbone."')
    parser.add_argument("--drop", action="append", default=[], metavar="NAME",
                        help="leave out this tensor, or the layer of this name; may be repeated")  # fmt: skip
    options = parser.parse_args()

    tensors, others = {}, []
    dropped = {name: 0 for name in options.drop}
    for name, value in state_dict_of(read(options.weights), options.key, options.weights).items():
        if not isinstance(name, str) or not isinstance(value, torch.Tensor):
            others.append(str(name))
            continue
        name = name.removeprefix("module.")
        if not name.startswith(options.prefix):
            others.append(name)
            continue
        name = name.removeprefix(options.prefix)
        left_out = [drop for drop in options.drop if name == drop or name.startswith(drop + ".")]
        for drop in left_out:
            dropped[drop] += 1
        if left_out:
            continue
        if name in tensors:
            fail(f"{options.weights} has two tensors that would both be {name!r}")
        # A copy of its own: safetensors takes no two tensors in one memory.
        tensors[name] = value.detach().clone(memory_format=torch.contiguous_format)
    for drop, count in dropped.items():
        if count == 0:
            fail(f"--drop {drop}: {options.weights} has no such tensor or layer")
    if not tensors:
        fail(f"{options.weights} has no tensors{' below ' + repr(options.prefix) if options.prefix else ''}")
    try:
        save_file(tensors, options.out, metadata={"format": "pt"})
    except Exception as error:
        fail(f"{options.out}: {error}")
    if others:
        print(f"left out {len(others)}: {', '.join(others[:10])}{', …' if len(others) > 10 else ''}", file=sys.stderr)
    numbers = sum(tensor.numel() for tensor in tensors.values())
    print(f"{options.out}: {len(tensors)} tensor{'s' if len(tensors) > 1 else ''}, {numbers:,} numbers")


if __name__ == "__main__":
    main()
